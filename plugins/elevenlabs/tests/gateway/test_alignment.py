"""Times of characters, against their definition."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from stretto_elevenlabs.alignment import CharacterTimes, Times

WORDS = st.lists(st.text("abcé", min_size=1, max_size=4), min_size=1, max_size=8)


@given(words=WORDS, data=st.data())
def test_characters_are_those_of_the_text_and_follow_each_other(words: list[str], data: st.DataObject) -> None:
    """Words have ends and places, or neither; they come in parts of any size, and so does the text."""
    text = " - ".join(words) + "!"
    has_ends = data.draw(st.booleans())
    bounds = sorted(data.draw(st.lists(st.integers(0, 99), min_size=2 * len(words), max_size=2 * len(words))))
    timed = list[dict[str, Any]]()
    start = 0
    for index, word in enumerate(words):
        known = {"end": bounds[2 * index + 1] / 10, "text_start": start, "text_end": start + len(word)}
        timed.append({"word": word, "start": bounds[2 * index] / 10} | (known if has_ends else {}))
        start += len(word) + len(" - ")
    cut = data.draw(st.integers(0, len(words)))
    finder = CharacterTimes()
    times = Times([], [], [])
    finder.add(text[: data.draw(st.integers(0, len(text)))])
    finder.add(text[len(finder._text) :])
    for part in (timed[:cut], timed[cut:]):
        times.extend(finder.until(part))
    times.extend(finder.rest(10.0))
    assert times.characters == list(text)
    assert times.ends_s[-1] == 10.0
    assert all(begin <= end for begin, end in zip(times.starts_s, times.ends_s, strict=True))
    index = 0
    for word, following in zip(timed, [*timed[1:], None], strict=True):
        end_s = word.get("end", 10.0 if following is None else following["start"])
        for number in range(len(word["word"])):  # the definition: each letter has its share
            share_s = (end_s - word["start"]) / len(word["word"])
            assert abs(times.starts_s[index] - word["start"] - number * share_s) < 1e-9
            index += 1
        index += len(" - ")
