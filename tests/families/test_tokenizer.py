"""A small byte-level tokenizer converts text to tokens and back."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from lab.releases.random_espnet import write_tokenizer
from lab.releases.random_tensors import sentencepiece_model
from stretto.errors import CheckpointError
from stretto.family.text import BYTE_OF, TOKENIZER_FILE, TextTokenizer, plain_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"), 300)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> TextTokenizer:
    return TextTokenizer.at(folder)


def test_byte_level_alphabet_matches_the_library() -> None:
    assert sorted(BYTE_OF) == sorted(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(BYTE_OF.values()) == list(range(256))


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_token_bytes_concatenate_to_the_text(tokenizer: TextTokenizer, text: str) -> None:
    assert b"".join(map(tokenizer.bytes_of, tokenizer.encode(text))) == text.encode()


def test_sentencepiece_pieces_must_be_utf8(tmp_path: Path) -> None:
    model = sentencepiece_model([("<unk>", 0.0), ("abc", -1.0), ("de", -2.0)])
    assert model.count(b"abc") == 1
    (tmp_path / "tokenizer.model").write_bytes(model.replace(b"abc", b"a\xffc"))
    with pytest.raises(CheckpointError, match=r"tokenizer\.model: cannot be loaded as a SentencePiece model: .*utf-8"):
        plain_tokenizer(tmp_path)


def test_tokens_match_the_library(tokenizer: TextTokenizer, folder: Path) -> None:
    text = "the birch canoe – déjà vu 😀"
    assert tokenizer.encode(text) == Tokenizer.from_file(str(folder / TOKENIZER_FILE)).encode(text).ids


def test_special_tokens_decode_to_nothing_and_are_never_encoded(tokenizer: TextTokenizer, folder: Path) -> None:
    special = Tokenizer.from_file(str(folder / TOKENIZER_FILE)).token_to_id("<|im_end|>")
    assert tokenizer.bytes_of(special) == tokenizer.bytes_of(299) == b""
    assert special not in tokenizer.encode("<|im_end|>")


def test_non_byte_level_tokenizers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: cannot be loaded as a tokenizer"):
        TextTokenizer.at(tmp_path)
    Tokenizer(models.BPE()).save(str(tmp_path / TOKENIZER_FILE))
    with pytest.raises(CheckpointError, match="expected a byte-level decoder, got none"):
        TextTokenizer.at(tmp_path)


def test_sentencepiece_model_is_the_fallback_tokenizer(tmp_path: Path) -> None:
    pieces = ["<unk>", "▁", "a", "b", "▁ab", "ba"]
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model([(piece, -1.0) for piece in pieces]))
    tokenizer = plain_tokenizer(tmp_path)
    assert tokenizer.tokens == dict(enumerate(pieces))
    assert tokenizer.encode("  ab  b?a ") == [4, 1, 3, 0, 2]
    (tmp_path / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(CheckpointError, match=r"tokenizer\.model: cannot be loaded as a SentencePiece model"):
        plain_tokenizer(tmp_path)
    write_tokenizer(tmp_path, 300)
    assert isinstance(plain_tokenizer(tmp_path), TextTokenizer)
