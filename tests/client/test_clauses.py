"""Text of any length is cut where a speaker draws breath, and nothing of it is lost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stretto_client.clauses import halve, split

TEXTS = st.text(alphabet='ab12 .,;:!?—"\n', max_size=200)


def words(pieces: list[str]) -> str:
    return "".join(character for piece in pieces for character in piece if character.isalnum())


@given(TEXTS, st.integers(1, 60))
def test_every_piece_fits_and_all_words_are_there_in_order(text: str, max_chars: int) -> None:
    pieces = split(text, max_chars)
    assert all(0 < len(piece) <= max_chars for piece in pieces)
    assert words(pieces) == words([text])


@given(TEXTS.filter(str.strip))
def test_halves_are_shorter_than_the_whole(text: str) -> None:
    halves = halve(text.strip())
    assert words(halves) == words([text])
    assert len(text.strip()) == 1 or max(map(len, halves)) < len(text.strip())


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
        (" \n ", 5, []),
    ],
)
def test_it_is_cut_between_sentences_before_clauses_before_words(text: str, max_chars: int, pieces: list[str]) -> None:
    assert split(text, max_chars) == pieces
