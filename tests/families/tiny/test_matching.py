"""Words that the model has skipped, joined or added do not take the times of other words."""

import pytest

from stretto.families.tiny.family import END_OF_TEXT, FIRST_CHARACTER, FIRST_PHONEME, PHONEMES, TINY, VOICES
from stretto.families.tiny.matching import MAX_DIFFERENCE, matched, similarity
from stretto.families.tiny.prompt import TEXT_CODEC, TinyTemplate
from stretto.family.prompting import Piece
from stretto.records.prompt import SourceWord
from tests.fakes import FakeCodec

WORDS = {  # as the model spells them
    "this": "dh-ih-s", "is": "ih-z", "a": "ax", "test": "t-eh-s-t", "testing": "t-eh-s-t-ih-ng", "she": "sh-iy",
    "sells": "s-eh-l-z", "sea": "s-iy", "shells": "sh-eh-l-z", "three": "th-r-iy", "dollars": "d-aa-l-er-z",
    "thousand": "th-aw-z-ax-n-d", "knight": "n-ay-t", "of": "ah-v", "one": "w-ah-n", "eight": "ey-t",
    "quick": "k-w-ih-k",
}  # fmt: skip


def phonemes(text: str) -> list[list[str]]:
    return [WORDS[word].split("-") for word in text.split()]


def test_words_are_most_similar_to_their_own_phonemes() -> None:
    for word in WORDS:
        (own,) = phonemes(word)
        assert similarity(own, word) == max(similarity(own, other) for other in WORDS)


@pytest.mark.parametrize(
    ("spoken", "text", "found"),
    [
        ("this is a testing", "this is a test testing", [0, 1, 2, 4]),
        ("she sells shells", "she sells sea shells", [0, 1, 3]),
        ("sells sea shells", "she sells sea shells", [1, 2, 3]),
        ("she sells", "she sells sea shells", [0, 1]),
        ("three dollars a test", "three thousand dollars a test", [0, 2, 3, 4]),
        ("this this is a test", "this is a test", [0, None, 1, 2, 3]),
        ("one knight of eight", "one quick knight of eight", [0, 2, 3, 4]),
        ("", "this is", []),
    ],
)
def test_missing_words_have_no_match(spoken: str, text: str, found: list[int | None]) -> None:
    matches = matched(phonemes(spoken), text.split())
    if None in found:  # either of two equal words may be the extra one
        assert sorted(each for each in matches if each is not None) == [each for each in found if each is not None]
    else:
        assert matches == found


def test_replies_that_differ_too_much_are_not_matched() -> None:
    words = ["this"] * (MAX_DIFFERENCE + 2)
    assert matched(phonemes("this"), words) == [None]
    assert matched(phonemes("this this"), words) != [None, None]


def ids(text: str) -> list[int]:
    """Return the text segment of a reply: phonemes, with spaces between words."""
    found = list[int]()
    for word in phonemes(text):
        found += [FIRST_PHONEME + PHONEMES.index(phoneme) for phoneme in word] + [FIRST_CHARACTER]
    return [*found[:-1], END_OF_TEXT]


def test_entries_of_a_script_refer_to_the_words_of_the_prompt() -> None:
    words = ("this", "is", "this", "testing")
    assert TEXT_CODEC.matched(ids("this is this"), words) == [0, 0, 0, 1, 1, 2, 2, 2]
    assert TEXT_CODEC.matched(ids("this is this testing"), words)[-1] == 3


def test_prompt_has_the_source_of_each_spoken_word() -> None:
    piece = Piece("user", "text", text="“It” costs $2.")
    written = TinyTemplate(FakeCodec()).write(TINY.task("tts"), (piece,), next(iter(VOICES)))
    assert written.words == ("it", "costs", "two", "dollars")
    two = SourceWord("$2", 11, 13)
    assert written.sources == (SourceWord("It", 1, 3), SourceWord("costs", 5, 10), two, two)
