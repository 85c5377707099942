"""What the bundled family's text tokens say, and which words its script is made of."""

import pytest

from python_backend.families.tiny import (
    CHARACTERS,
    FIRST_CHARACTER,
    FIRST_PHONEME,
    PHONEMES,
    SEPARATOR,
    SPACE,
)
from python_backend.families.tokens import get_text_codec

TINY = get_text_codec("tiny")


def phonemes(text: str) -> list[int]:
    """Token ids of phonemes; `_` is the blank between words."""
    return [SPACE.start if name == "_" else FIRST_PHONEME + PHONEMES.index(name) for name in text.split()]


def characters(text: str) -> list[int]:
    return [FIRST_CHARACTER + CHARACTERS.index(each) for each in text]


def read(task: str, token_ids: list[int]) -> tuple[str, list[str]]:
    """The whole text, and the pieces that it came in."""
    reader = TINY.reader(task)
    pieces = [piece for piece in [*map(reader.push, token_ids), reader.end()] if piece]
    return "".join(pieces), pieces


@pytest.mark.parametrize(
    ("spoken", "text", "num_pieces"),
    [
        ("dh ax _ b er ch", "dh-ax b-er-ch", 2),
        ("pau _ k ae t _ pau", ", k-ae-t ,", 3),
        ("k _ _ t _", "k t", 2),
        ("pau k ae t pau", ", k-ae-t ,", 2),
        ("", "", 0),
    ],
)
def test_phonemes_leave_word_by_word(spoken: str, text: str, num_pieces: int) -> None:
    whole, pieces = read("tts", phonemes(spoken))
    assert whole == text
    assert len(pieces) == num_pieces


def test_a_transcript_is_what_follows_the_separator() -> None:
    tokens = [*phonemes("pau _ k ae t _ pau"), SEPARATOR, *characters("a cat's tail.")]
    assert read("asr", tokens) == ("a cat's tail.", ["a", " cat's", " tail."])


def test_a_transcript_without_separator_is_empty() -> None:
    assert read("asr", phonemes("k ae t")) == ("", [])


@pytest.mark.parametrize(
    ("spoken", "words"),
    [
        ("pau _ k ae t _ s ih t s _ pau", [None, 0, 0, 0, 1, 1, 1, 1, None]),
        ("k ae _ pau t", [0, 0, None, 1]),
        ("k pau t", [0, None, 1]),
        ("_ _ k", [0]),
        ("pau pau", [None, None]),
        ("", []),
    ],
)
def test_words_are_what_lies_between_blanks_and_a_pause_is_none(spoken: str, words: list[int | None]) -> None:
    assert TINY.words(phonemes(spoken)) == words


def test_a_family_without_a_text_codec_says_nothing() -> None:
    silent = get_text_codec("eight_streams")
    reader = silent.reader("chat")
    assert reader.push(3) == reader.end() == ""
    assert silent.words([1, 2]) == [None, None]
