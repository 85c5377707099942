"""Texts are normalised and tokenized as by the authors' code, which uses WeTextProcessing for numbers."""

import json
from pathlib import Path
from typing import Any

import pytest

from plugins.indextts2.lab.indextts2_texts import TEXTS
from plugins.indextts2.lab.random_indextts2 import write_tokenizer
from stretto.errors import InvalidRequest
from stretto.family.text import SentencePieceTokenizer, sentencepiece_at
from stretto_indextts2 import text as text_module
from stretto_indextts2.text import normalised, number_rules, spelled_pinyin, tokenizable

AUTHORS: dict[str, dict[str, Any]] = {
    entry["text"]: entry for entry in json.loads((Path(__file__).parent / "data" / "texts.json").read_text())
}
HAS_RULES = number_rules("zh") is not None


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> SentencePieceTokenizer:
    return sentencepiece_at(write_tokenizer(tmp_path_factory.mktemp("bpe")))


@pytest.mark.parametrize("text", TEXTS)
def test_ids_equal_those_of_the_authors(text: str, tokenizer: SentencePieceTokenizer) -> None:
    if any(character.isdigit() for character in text) and not HAS_RULES:
        pytest.skip("the package wetext is not installed")
    if len(text) > 1:
        assert normalised(text, "text") == AUTHORS[text]["normalised"]
    assert tokenizer.encode(tokenizable(text, "text")) == AUTHORS[text]["ids"]


def test_digits_are_refused_without_the_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_module, "number_rules", lambda language: None)
    with pytest.raises(InvalidRequest, match="the server lacks the package wetext"):
        normalised("It is 8:30.", "text")
    assert normalised("It is \u201clate\u201d.", "text") == "It is 'late'."
    assert normalised("\u6700zhong4\u8981", "text") == "\u6700zhong4\u8981"  # the digit is the tone of a syllable


@pytest.mark.parametrize(
    ("syllable", "expected"),
    [("ju4", "JV4"), ("que2", "QVE2"), ("x\u00fcn1", "XVN1"), ("nv3", "nv3"), ("jve2", "JVE2"), ("zhong4", "zhong4")],
)
def test_syllables_have_the_spelling_of_the_tokenizer(syllable: str, expected: str) -> None:
    assert spelled_pinyin(syllable) == expected


@pytest.mark.parametrize("word", ["beta1", "better1", "voice2", "babala2", "hunger2"])
def test_words_with_digits_are_no_syllables(word: str) -> None:
    assert not text_module.TONED_SYLLABLE.match(word)
