"""Each spoken word belongs to a word of the request's text, whatever the text becomes in words."""

import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stretto.family.pronunciations import SourceWords
from stretto.family.source_words import MAX_PAIRS, source_words
from stretto.records.prompt import SourceWord
from stretto_contract.pronunciation import Dictionary, Pronouncer

SPELLED = {
    "$3.50": ("three", "dollars", "and", "fifty", "cents"),
    "7:30": ("seven", "thirty"),
    "5": ("five",),
    "million": ("million",),
    "$5": ("five", "dollars"),
    "Dr": ("doctor",),
    "&": ("and",),
    ">=": ("at", "least"),
}


def speak(word: str) -> tuple[str, ...]:
    plain = word.strip(".,!?“”()-")
    return SPELLED.get(plain, (plain.lower(),) if any(map(str.isalnum, plain)) else ())


def grouped(text: str, spoken: Sequence[str]) -> list[tuple[str, str]]:
    """Return the words of a text, each with its spoken words."""
    found = source_words(text, spoken, speak)
    assert len(found) == len(spoken)
    assert [each.start for each in found] == sorted(each.start for each in found)
    assert all(text[each.start : each.end] == each.word for each in found)
    return [
        (source.word, " ".join(word for word, owner in zip(spoken, found, strict=True) if owner == source))
        for source in dict.fromkeys(found)
    ]


@pytest.mark.parametrize(
    ("text", "spoken", "words"),
    [
        (
            "It costs $3.50 at 7:30.",
            "it costs three dollars and fifty cents at seven thirty",
            ["It", "costs", ("$3.50", "three dollars and fifty cents"), "at", ("7:30", "seven thirty")],
        ),
        ("on 5 May", "on fifth of may", ["on", ("5", "fifth of"), "May"]),
        ("He paid $5 million, twice", "he paid five million dollars twice",
         ["He", "paid", ("$5 million", "five million dollars"), "twice"]),
        ("“Hello—world” (yes…no) - a & b", "hello world yes no a and b",
         ["Hello", "world", "yes", "no", "a", ("&", "and"), "b"]),
        ("in the U.S. now", "in the u s now", ["in", "the", ("U.S.", "u s"), "now"]),
        ("the the the", "the the the the", ["the", "the", ("the", "the the")]),
        ("Dr", "drive", [("Dr", "drive")]),
        ("a >= 5", "a at least five", ["a", (">=", "at least"), ("5", "five")]),
    ],
)  # fmt: skip
def test_spoken_words_belong_to_words_of_the_text(text: str, spoken: str, words: list[str | tuple[str, str]]) -> None:
    expected = [(each, each.lower()) if isinstance(each, str) else each for each in words]
    assert grouped(text, spoken.split()) == expected


@given(
    st.lists(st.sampled_from(["It", "$3.50", "7:30.", "&", "-", "5", "million", "(Dr)", "…"]), max_size=12),
    st.lists(st.sampled_from(["it", "three", "and", "seven", "five", "other"]), max_size=12),
)
def test_any_spoken_words_have_ascending_sources(words: list[str], spoken: list[str]) -> None:
    text = "  ".join(words)
    if text.strip(" …"):
        grouped(text, spoken)
    else:
        assert source_words(text, spoken, speak) == ()


def test_alignment_is_limited() -> None:
    long = "a " * 1200
    assert len(source_words(long, ["a"] * 1200, speak)) == 1200
    assert MAX_PAIRS < 1200 * 1201
    assert source_words(long, ["a"] * 1201, speak) == ()


SEVERAL = {"SQL": "ess queue ell", "北京": "bei jing", "New York": "Noo Yawk", "AI": "ay", "a b": "c"}


@pytest.mark.parametrize(
    ("text", "sources"),
    [
        ("My SQL's on", "My SQL's SQL's SQL's on"),
        ("(SQL)s, SQL", "(SQL)s, (SQL)s, (SQL)s, SQL SQL SQL"),
        ("我们北京人 好", "我们北京人 我们北京人 好"),
        ("在北京北京。", "在北京北京。 在北京北京。 在北京北京。"),
        ("“New York’s” AI-SQL-x", "“New·York’s” “New·York’s” AI-SQL-x AI-SQL-x AI-SQL-x"),
        ("(a b) AI", "(a·b) AI"),
    ],
    ids=range(6),
)
def test_replaced_words_keep_the_text_around_them(text: str, sources: str) -> None:
    """The sources do not depend on which words are known together, as in a text that is still being written."""
    spoken, changes, _ = Pronouncer((Dictionary(SEVERAL),)).after(text)
    words = [SourceWord(each.group(), each.start(), each.end()) for each in re.finditer(r"\S+", spoken)]
    found = SourceWords().read(words, changes)
    assert [each.word.replace(" ", "·") for each in found] == sources.split()
    assert [text[each.start : each.end] for each in found] == [each.word for each in found]
    one_by_one = SourceWords()
    for index, word in enumerate(words):
        given = [each for each in changes if index == 0 or each.start >= words[index - 1].end]
        given = [each for each in given if each.start < word.end]
        last = one_by_one.read([word], given)
    assert last == found
