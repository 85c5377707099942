"""Text codecs turn tokens into text, and alignment scripts into words."""

from pathlib import Path

import pytest

from lab.releases.random_espnet import write_tokenizer
from stretto.families.bagpiper.family import bagpiper
from stretto.families.tiny import family as tiny
from stretto.families.tiny.family import CHARACTERS, FIRST_CHARACTER, FIRST_PHONEME, PHONEMES, SEPARATOR, SPACE
from stretto.families.tiny.prompt import TEXT_CODEC as TINY
from stretto.family.text import TextTokenizer, load_text_codec, subword_codec
from tests.small_vocabularies import SMALL_BAGPIPER
from tests.speech_families import EIGHT_STREAMS

FIRST = 256  # of the subwords' ids


def phonemes(text: str) -> list[int]:
    """Return the token ids of phonemes; `_` is the blank between words."""
    return [SPACE.start if name == "_" else FIRST_PHONEME + PHONEMES.index(name) for name in text.split()]


def characters(text: str) -> list[int]:
    return [FIRST_CHARACTER + CHARACTERS.index(each) for each in text]


def read(task: str, token_ids: list[int]) -> tuple[str, list[str]]:
    """Return the complete text and its pieces."""
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
def test_phonemes_are_emitted_word_by_word(spoken: str, text: str, num_pieces: int) -> None:
    whole, pieces = read("tts", phonemes(spoken))
    assert whole == text
    assert len(pieces) == num_pieces


def test_transcript_is_the_text_after_the_separator() -> None:
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
def test_words_are_separated_by_blanks_and_pauses_belong_to_none(spoken: str, words: list[int | None]) -> None:
    assert TINY.words(phonemes(spoken)) == words


def test_family_without_text_codec_returns_no_text() -> None:
    silent = load_text_codec(EIGHT_STREAMS, Path())
    reader = silent.reader("chat")
    assert reader.push(3) == reader.end() == ""
    assert silent.words([1, 2]) == [None, None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"), 300)


def test_subwords_stream_by_token_with_whole_characters(folder: Path) -> None:
    tokenizer = TextTokenizer.at(folder)
    reader = subword_codec(tokenizer, range(FIRST, FIRST + 300)).reader("chat")
    text = "the garden: 中 😀!"
    pieces = [reader.push(FIRST + token_id) for token_id in tokenizer.encode(text)]
    assert "".join(pieces) == text
    assert "中" in pieces
    assert "😀" in pieces
    assert reader.end() == ""


def test_incomplete_utf8_becomes_one_replacement_character(folder: Path) -> None:
    tokenizer = TextTokenizer.at(folder)
    reader = subword_codec(tokenizer, range(FIRST, FIRST + 300)).reader("chat")
    first, second, *_ = (FIRST + token_id for token_id in tokenizer.encode("中"))
    (letter,) = (FIRST + token_id for token_id in tokenizer.encode("z"))
    assert [reader.push(first), reader.push(second), reader.push(letter)] == ["", "", "\ufffdz"]
    assert reader.push(first) == ""
    assert [reader.end(), reader.end()] == ["\ufffd", ""]


def test_non_text_ids_decode_to_empty_text(folder: Path) -> None:
    reader = subword_codec(TextTokenizer.at(folder), range(FIRST, FIRST + 300)).reader("chat")
    assert [reader.push(token_id) for token_id in (0, 3, FIRST + 299, FIRST + 300)] == [""] * 4


def test_text_codec_uses_the_checkpoint_tokenizer(folder: Path, tmp_path: Path) -> None:
    family = bagpiper(SMALL_BAGPIPER)
    (token_id,) = TextTokenizer.at(folder).encode("z")
    assert load_text_codec(family, folder).reader("chat").push(SMALL_BAGPIPER.text[0] + token_id) == "z"
    assert load_text_codec(family, tmp_path).reader("chat").push(SMALL_BAGPIPER.text[0] + token_id) == ""
    assert load_text_codec(tiny.TINY, tmp_path) is TINY
