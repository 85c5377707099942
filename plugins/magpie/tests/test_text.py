"""Ids of texts equal those of NeMo's tokenizers (`lab/magpie_texts.py`), and other configs and records are refused."""

import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from plugins.magpie.lab.random_texts import FILES, LANGUAGES, TEXTS, TOKENIZERS
from stretto.errors import CheckpointError
from stretto.testing.releases import REMOVED, set_fields
from stretto_magpie.convert_text import SIZES, read_texts
from stretto_magpie.text import Texts

NEMO = json.loads((Path(__file__).parent / "data/texts.json").read_text())
CONFIG = {"text_tokenizers": TOKENIZERS, "language_to_tokenizer_mapping": LANGUAGES}


def record_of(changes: Mapping[str, object]) -> dict[str, Any]:
    config = deepcopy(CONFIG)
    set_fields(config, changes)
    return read_texts(config, FILES.__getitem__)


@pytest.fixture(scope="module")
def texts() -> Texts:
    return Texts(json.loads(json.dumps(record_of({}))))


def offset_of(language: str) -> int:
    """Return the number of ids of the tokenizers before a language's."""
    offset = 0
    for name, options in TOKENIZERS.items():
        if name == LANGUAGES[language][0]:
            break
        sizes = [NEMO[code]["size"] for code, names in LANGUAGES.items() if names == [name] and code in NEMO]
        offset += SIZES.get(options["_target_"]) or (sizes or [384])[0]
    return offset


@pytest.mark.parametrize("language", TEXTS)
def test_ids_equal_those_of_nemo(texts: Texts, language: str) -> None:
    offset = offset_of(language)
    for text, ids in zip(TEXTS[language], NEMO[language]["ids"], strict=True):
        assert [number - offset for number in texts.encode(text, language)] == ids, text


def test_languages_are_those_that_can_be_read(texts: Texts) -> None:
    assert texts.languages == ("en", "es", "de", "pt-BR", "hi", "fr", "it")
    assert texts.size == offset_of("it") + 384


def test_release_without_languages_has_those_of_nemo() -> None:
    found = Texts(record_of({"language_to_tokenizer_mapping": REMOVED}))
    assert found.languages == ("en", "de", "es", "fr")


def test_text_without_symbols_has_no_ids(texts: Texts) -> None:
    assert texts.encode("  ", "en") == []


ENGLISH = "text_tokenizers.english_phoneme"
GERMAN = "text_tokenizers.german_phoneme"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("text_tokenizers", [], "text_tokenizers: expected a mapping, got []"),
        (ENGLISH, "text", f"{ENGLISH}: expected a mapping, got 'text'"),
        (f"{ENGLISH}._target_", ["a"], f"{ENGLISH}._target_: expected "),
        (f"{ENGLISH}._target_", "AutoTokenizer", f"{ENGLISH}.pretrained_model: expected 'google/byt5-small', got None"),
        (f"{ENGLISH}.locale", "ja-JP", f"{ENGLISH}.locale: expected 'en-US' or "),
        (f"{ENGLISH}.punct", False, f"{ENGLISH}.punct: expected True, got False"),
        (f"{ENGLISH}.fixed_vocab", ["a"], f"{ENGLISH}.fixed_vocab: expected no value, got ['a']"),
        (f"{ENGLISH}.g2p", REMOVED, f"{ENGLISH}.g2p is missing"),
        (f"{ENGLISH}.g2p.locale", "es-ES", f"{ENGLISH}.g2p.locale: expected 'en-US', got 'es-ES'"),
        (f"{ENGLISH}.g2p.grapheme_case", "title", f"{ENGLISH}.g2p.grapheme_case: expected 'upper' or "),
        (f"{GERMAN}.g2p.ignore_ambiguous_words", True, "ignore_ambiguous_words: expected False, got True"),
        (f"{ENGLISH}.g2p.phoneme_dict", "/etc/passwd", "expected a file of the archive, such as nemo:words.dict"),
        (f"{ENGLISH}.g2p.phoneme_dict", ["nemo:a"] * 17, "g2p.phoneme_dict: expected at most 16 files, got 17"),
        (f"{ENGLISH}.g2p.grapheme_prefix", "#" * 9, f"{ENGLISH}.g2p.grapheme_prefix: expected at most 8 characters"),
        ("language_to_tokenizer_mapping", {f"{n}": [] for n in range(65)}, "expected at most 64 entries, got 65"),
        (f"{ENGLISH}.g2p.phoneme_dict", [], "g2p.phoneme_dict: expected a dictionary with words, got []"),
        (f"{ENGLISH}.g2p.phoneme_dict", "nemo:english.heteronyms", "expected a dictionary with words"),
    ],
)
def test_error_names_the_unsupported_value(name: str, value: object, message: str) -> None:
    with pytest.raises(CheckpointError) as refused:
        record_of({name: value})
    assert message in str(refused.value)
    assert str(refused.value).startswith("model_config.yaml: ")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("size", None, "expected size and languages"),
        ("languages", [], "expected size and languages"),
        ("languages.en", [], "languages: en: expected "),
        ("languages.fr.offset", True, "languages: fr: offset: expected an integer"),
        ("languages.it.offset", 10**6, "languages: it: offset: expected 384 ids below "),
        ("languages.en.offset", -1, "languages: en: offset: expected "),
        ("languages.en.words", REMOVED, "languages: en: words is missing"),
        ("languages.en.words.A", "a" * 257, "languages: en: words.A: expected "),
        ("languages.en.words.A", 3, "languages: en: words.A: expected "),
        ("languages.en.symbols", [1], "languages: en: symbols.0: expected "),
        ("languages.en.case", "title", "languages: en: case: expected "),
        ("languages.en.is_padded", "yes", "languages: en: is_padded: expected "),
    ],
)
def test_malformed_records_are_refused(name: str, value: object, message: str) -> None:
    record = record_of({})
    set_fields(record, {name: value})
    with pytest.raises(CheckpointError) as refused:
        Texts(record)
    assert message in str(refused.value)
