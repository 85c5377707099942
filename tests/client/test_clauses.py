"""Texts of any length are cut where a speaker would pause, without loss."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stretto_client import long_speech
from stretto_client.long_speech import PARAGRAPH_PAUSE_S, first_sentences, halve, split, split_with_pauses

TEXTS = st.text(alphabet='ab12 .,;:!?—"\n', max_size=200)
SPACE = st.text(alphabet=" \n\t.;", min_size=1, max_size=60)


def words(pieces: list[str]) -> str:
    return "".join(character for piece in pieces for character in piece if character.isalnum())


@given(TEXTS, st.integers(1, 60))
def test_split_pieces_fit_and_keep_all_words_in_order(text: str, max_chars: int) -> None:
    pieces = split(text, max_chars)
    assert all(0 < len(piece) <= max_chars for piece in pieces)
    assert words(pieces) == words([text])


@given(TEXTS.filter(str.strip))
def test_halved_texts_are_shorter_and_keep_all_words(text: str) -> None:
    halves = halve(text.strip())
    assert words(halves) == words([text])
    assert len(text.strip()) == 1 or max(map(len, halves)) < len(text.strip())


@given(TEXTS | st.tuples(TEXTS, SPACE, TEXTS).map("".join), st.integers(1, 60))
def test_first_sentences_and_rest_are_the_whole_text(text: str, max_chars: int) -> None:
    complete, rest = first_sentences(text, max_chars)
    assert complete + rest == text
    assert len(rest) <= max_chars


@pytest.mark.parametrize(
    ("text", "complete", "rest"),
    [
        ("It rained, as it does; we stayed and", "It rained, as it does; ", "we stayed and"),
        ("It rained, as it does and will do", "It rained, ", "as it does and will do"),
        ("one two three four five six seven eight nine", "one two three four five ", "six seven eight nine"),
        ("a" * 60, "a" * 50, "a" * 10),
        (" " * 60, " " * 52, " " * 8),
    ],
)
def test_overlong_sentence_is_split_after_its_first_clauses(text: str, complete: str, rest: str) -> None:
    assert first_sentences(text, 25) == (complete, rest)


@pytest.mark.parametrize(
    ("text", "max_chars", "pieces"),
    [
        ("Dr. Smith came. He left.", 16, ["Dr. Smith came.", "He left."]),
        ("Dr. Smith came. He left.", 24, ["Dr. Smith came. He left."]),
        ("It rained, as it does; we stayed.", 25, ["It rained, as it does;", "we stayed."]),
        ("It rained, as it does; we stayed.", 15, ["It rained,", "as it does;", "we stayed."]),
        ("Read this\n\nand that", 12, ["Read this", "and that"]),
        ("abcdefgh ij", 3, ["abc", "def", "gh", "ij"]),
        ("One. --- Two.", 5, ["One.", "Two."]),
        ("One.\n\nTwo. Three.", 10, ["One.\n\nTwo.", "Three."]),
        (" \n ", 5, []),
    ],
)
def test_text_is_split_at_sentences_then_clauses_then_words(text: str, max_chars: int, pieces: list[str]) -> None:
    assert split(text, max_chars) == pieces


PARAGRAPH = "Dr. Smith came. He left; we stayed, “as it does”.\n\n"


@pytest.mark.parametrize(
    "text",
    [PARAGRAPH * 300, PARAGRAPH.strip() * 300, "«a. " * 3000, "猫。" * 6000, "a" * 9000],
    ids=["paragraphs", "one paragraph", "open quotation marks", "Chinese", "one word"],
)
def test_sentences_found_in_blocks_match_those_of_the_whole_text(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    looked_at: list[str] = []

    def segment(language: str, text: str) -> list[str]:
        looked_at.append(text)
        return whole(language, text)

    whole = long_speech.segment
    monkeypatch.setattr(long_speech, "segment", segment)
    pieces = split(text, 160)
    assert "".join(looked_at) == text
    assert max(map(len, looked_at)) <= long_speech.MAX_BLOCK_CHARS
    assert words(pieces) == words([text])
    if "Smith" in text:
        monkeypatch.setattr(long_speech, "MAX_BLOCK_CHARS", len(text))
        assert split(text, 160) == pieces


@pytest.mark.parametrize(
    ("text", "max_chars", "parts"),
    [
        ("One. Two.\n\nThree.", 9, ["One. Two.", PARAGRAPH_PAUSE_S, "Three."]),
        ("One.\r\n \r\nTwo.", 5, ["One.", PARAGRAPH_PAUSE_S, "Two."]),
        ("One.\nTwo.", 5, ["One.", "Two."]),
        ("\n\nOne.\n\n---\n\nTwo.\n\n", 5, ["One.", PARAGRAPH_PAUSE_S, "Two."]),
        ("One.\n\nabcdefgh ij", 4, ["One.", PARAGRAPH_PAUSE_S, "abcd", "efgh", "ij"]),
        ("One.\n\nTwo.\n\nThree.", 12, ["One.\n\nTwo.", PARAGRAPH_PAUSE_S, "Three."]),
    ],
)
def test_pause_is_where_a_text_is_split_between_paragraphs(text: str, max_chars: int, parts: list[str | float]) -> None:
    assert split_with_pauses(text, max_chars) == parts


def test_paragraphs_keep_their_pauses_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    text = PARAGRAPH * 40
    whole = split_with_pauses(text, 60)
    assert whole.count(PARAGRAPH_PAUSE_S) == 39
    monkeypatch.setattr(long_speech, "MAX_BLOCK_CHARS", 100)
    assert split_with_pauses(text, 60) == whole
