"""Chatterbox Multilingual: token ids equal the authors' `MTLTokenizer`; missing packages and files are reported."""

import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from plugins.chatterbox.lab.random_chatterbox import MULTILINGUAL, command, convert, write_release
from plugins.chatterbox.tests.chatterbox_release import opened as opened_release
from plugins.chatterbox.tests.chatterbox_release import write
from stretto.convert.command import main
from stretto.convert.make_repository import profile
from stretto.errors import CheckpointError, InvalidRequest
from stretto.family.base import Family
from stretto.family.plugin import family_at
from stretto.family.text import TextTokenizer
from stretto.preprocessing.request import Preprocessor, RawRequest
from stretto_chatterbox import languages
from stretto_chatterbox.family import END_OF_TEXT, START_OF_TEXT, ChatterboxVocabulary, chatterbox
from stretto_chatterbox.languages import (
    CANGJIE_FILE,
    CODES,
    FOLDER,
    LANGUAGES,
    LanguageTokenizers,
    RequiredLanguages,
    open_languages,
)
from stretto_chatterbox.prompt import ChatterboxTemplate, open_chatterbox
from tests.refused_conversion import refused
from tests.tiers import by_night

SENTENCES: list[dict[str, Any]] = json.loads(
    (Path(__file__).parent / "data" / "chatterbox_languages.json").read_text()
)["replies"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(tmp_path_factory.mktemp("multilingual"), is_multilingual=True)


@pytest.fixture(scope="module")
def preprocessor(checkpoint: Path) -> Preprocessor:
    return Preprocessor(checkpoint)


@dataclass
class Opened:
    """Parts of a checkpoint that all templates share.

    Attributes:
        words: What the template's fake packages find in every text.
    """

    family: Family
    template: ChatterboxTemplate
    words: list[Any]


@pytest.fixture(scope="module")
def opened(checkpoint: Path) -> Opened:
    family, tokenizer, words = family_at(checkpoint), TextTokenizer.at(checkpoint, spells_bytes=False), list[Any]()
    tokens = {name: token_id for token_id, name in tokenizer.tokens.items()}
    cangjie = languages.read_cangjie(checkpoint / FOLDER / CANGJIE_FILE)
    found = LanguageTokenizers(tokens, cangjie, segment=lambda text: words, read=lambda text: words)
    return Opened(family, ChatterboxTemplate(family, MULTILINGUAL, tokenizer, languages=found), words)


def required(checkpoint: Path) -> RequiredLanguages:
    known = family_at(checkpoint).languages
    assert isinstance(known, RequiredLanguages)
    return known


@pytest.mark.parametrize("language", LANGUAGES)
def test_token_ids_match_the_authors_tokenizer(language: str, opened: Opened) -> None:
    """Language names and codes are equivalent."""
    sentences = [each for each in SENTENCES if each["language"] == language]
    assert len(sentences) >= 5
    for sentence in sentences:
        opened.words[:] = sentence.get("words", [])
        for name in (language, LANGUAGES[language]):
            rows = write(opened.template, opened.family, sentence["text"], language=name)
            ids = rows[MULTILINGUAL.num_voice_rows : -2, 0].tolist()
            assert ids == sentence["ids"], sentence["text"]


@pytest.mark.parametrize("text", ["[fr] a", "[START]", "a [SPACE] b", "[STOP]x", "[cj_a][cj_.]"])
def test_text_cannot_inject_special_tokens(text: str, checkpoint: Path) -> None:
    """This also holds if the tokenizer's added tokens are not marked as special, as in this test's release."""
    tokens = TextTokenizer.at(checkpoint, spells_bytes=False).tokens
    rows = write(*opened_release(checkpoint), text, language="en")
    start, tag, *ids, end = rows[MULTILINGUAL.num_voice_rows : -2, 0].tolist()
    assert (start, tokens[tag], end) == (START_OF_TEXT, "[en]", END_OF_TEXT)
    spelled = [tokens[each] for each in ids if tokens[each].startswith("[") and len(tokens[each]) > 1]
    assert spelled == ["[SPACE]"] * text.count(" ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("{}", r"options.language: expected one of arabic, .*, tr, got no value"),
        ('{"language": "auto"}', r"options.language: expected one of arabic, .*, got 'auto'"),
        ('{"language": "klingon"}', r"options.language: expected one of .*, got 'klingon'"),
        ('{"language": 3}', r"options.language: expected"),
        ('{"language": "JA"}', r"\(ja needs pykakasi, which is not installed\), got 'ja'"),
        ('{"language": "chinese"}', r"\(chinese needs spacy_pkuseg, which is not installed\), got 'chinese'"),
    ],
)
def test_a_language_is_required_and_a_missing_package_named(
    preprocessor: Preprocessor, options: str, message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        preprocessor.prepare(RawRequest(text="hello", options=options))


def test_profile_lists_supported_and_plain_languages(checkpoint: Path) -> None:
    record = json.loads(profile(family_at(checkpoint), 24_000, 25.0))
    assert record["requires_language"] is True
    assert record["languages_plain"] == ["he", "ru"]
    assert {"german", "de", "hebrew", "he"} <= set(record["languages"])
    assert not {"japanese", "ja", "chinese", "zh"} & set(record["languages"])
    assert "requires_language" not in json.loads(profile(chatterbox(ChatterboxVocabulary()), 24_000, 25.0))


def test_installed_packages_make_their_languages_available(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chinese also needs the segmenter's model, which the server does not download, and the release's table."""
    opened: list[tuple[str, ...]] = []

    def module(name: str, kind: str, **methods: Callable[[str], Any]) -> None:
        made = ModuleType(name)
        made.__spec__ = SimpleNamespace(name=name)  # type: ignore[assignment]
        setattr(made, kind, lambda *given: (opened.append((kind, *given)), SimpleNamespace(**methods))[1])
        monkeypatch.setitem(sys.modules, name, made)

    module("spacy_pkuseg", "pkuseg", cut=lambda text: [text])
    module("pykakasi", "kakasi", convert=lambda text: [{"orig": text, "hira": text}])
    module("russian_text_stresser", "RussianTextStresser")
    module("russian_text_stresser.text_stresser", "RussianTextStresser", stress_text=lambda text: f"{text}!")
    monkeypatch.setenv("PKUSEG_HOME", str(tmp_path))
    assert required(checkpoint).missing["zh"].startswith("the model spacy_ontonotes of spacy_pkuseg in ")
    (tmp_path / "spacy_ontonotes").mkdir()
    family, known = family_at(checkpoint), required(checkpoint)
    assert (dict(known.missing), known.plain) == ({}, ("he",))
    assert set(CODES) == set(known.names)
    russian = write(open_chatterbox(checkpoint), family, "да", language="ru")
    assert opened == [
        ("pkuseg", str(tmp_path / "spacy_ontonotes")),
        ("kakasi",),
        ("RussianTextStresser",),
    ]
    assert len(russian) == MULTILINGUAL.num_voice_rows + len("[]да.!") - 1 + 2 + 2
    assert "zh" in languages.missing_packages(has_cangjie=False)


def test_broken_language_package_is_named(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = ModuleType("pykakasi")
    made.__spec__ = SimpleNamespace(name="pykakasi")  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "pykakasi", made)
    with pytest.raises(CheckpointError, match="pykakasi: installed, but cannot be opened"):
        open_languages(checkpoint / FOLDER, {})


def test_language_package_failure_fails_only_its_request(checkpoint: Path) -> None:
    tokens = dict.fromkeys(("[ja]", "[en]"), 9)
    found = LanguageTokenizers(tokens, {}, read=lambda text: [{"orig": text}])
    with pytest.raises(
        InvalidRequest, match="text: expected text that the package for japanese can read, got KeyError"
    ):
        found.pieces("a", "ja", 10)
    assert found.pieces("A", "en", 10) == [9, "a"]


def test_text_length_is_checked_after_decomposition(opened: Opened) -> None:
    """U+FDFA is decomposed into 18 characters."""
    family, template = opened.family, opened.template
    most = family.max_text_chars
    number = most // 18 + 1
    expected = f"text: expected at most {most} characters, got {18 * number + 1} after decomposition"
    with pytest.raises(InvalidRequest, match=expected):
        write(template, family, "\ufdfa" * number, language="ar")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release(tmp_path_factory.mktemp("release") / "release", is_multilingual=True)


@pytest.fixture
def release(published: Path, tmp_path: Path) -> Path:
    """Return links to the files of the release, which a test may replace but not change."""
    return Path(shutil.copytree(published, tmp_path / "release", copy_function=os.link))


BROADCAST = torch.ones(1).expand(1 << 40)  # claims 4 TB


class Hostile:
    """Pickled object that runs code when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("was run",)


def without(tensors: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return {key: each for key, each in tensors.items() if key != name}


def replaced(path: Path) -> Path:
    """Remove a file, so that the other file that it is linked to stays."""
    path.unlink()
    return path


def change(folder: Path, file: str, edit: Callable[[Any], Any]) -> None:
    """Replace the contents of a state dictionary."""
    tensors = torch.load(folder / file, weights_only=True)
    torch.save(edit(tensors), replaced(folder / file))


def retag(folder: Path) -> None:
    path = folder / "grapheme_mtl_merged_expanded_v1.json"
    text = path.read_text()
    for code in LANGUAGES:
        text = text.replace(f'"[{code}]"', f'"[{code}_]"')
    replaced(path).write_text(text)


CANGJIE = {
    "{}": "expected a list of 1 to 200000 texts, got dict",
    "[]": "expected a list of 1 to 200000 texts, got 0",
    '["a"]': "expected a character, a tab and a code, got 'a'",
    '["a\\t"]': "expected a character, a tab and a code",
    '["a\\tbcdefghij"]': "expected a character, a tab and a code",
    "[3]": "expected a character, a tab and a code, got 3",
    "[" * 100_000: "expected a list of characters and codes, got RecursionError",
    json.dumps(["a\tb"] * 200_001): "expected a list of 1 to 200000 texts, got 200001",
}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        *by_night((lambda folder: (folder / "s3gen.pt").unlink(), "s3gen.pt is missing")),
        (lambda folder: (folder / "ve.pt").unlink(), "ve.pt is missing"),
        (lambda folder: replaced(folder / "ve.pt").write_bytes(b"no"), "ve.pt: expected tensors"),
        (lambda folder: change(folder, "ve.pt", lambda each: without(each, "proj.bias")), "missing: ve.proj.bias"),
        (lambda folder: change(folder, "s3gen.pt", lambda each: [each]), "s3gen.pt: expected tensors by name"),
        (
            lambda folder: change(folder, "s3gen.pt", lambda each: each | {"flow.encoder_proj.bias": BROADCAST}),
            "s3gen.pt: expected dense tensors of real numbers, got other values in flow.encoder_proj.bias",
        ),
        (lambda folder: torch.save(Hostile(), replaced(folder / "ve.pt")), "ve.pt: expected tensors"),
        *by_night(
            (
                lambda folder: change(folder, "s3gen.pt", lambda each: without(each, "flow.encoder_proj.bias")),
                "missing: flow.encoder_proj.bias",
            )
        ),
        (retag, "expected a tokenizer with language tokens, such as [fr]"),
        (
            lambda folder: (folder / "grapheme_mtl_merged_expanded_v1.json").unlink(),
            "grapheme_mtl_merged_expanded_v1.json is missing",
        ),
        (lambda folder: replaced(folder / CANGJIE_FILE).write_text("{}"), CANGJIE["{}"]),
    ],
)
def test_unsuitable_release_files_are_named(
    release: Path, edit: Callable[[Path], object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(release)
    assert message in refused(command(release, release.parent / "out"), release.parent / "out", capsys)


def test_release_without_cangjie_table_has_no_chinese(release: Path) -> None:
    (release / CANGJIE_FILE).unlink()
    out = release.parent / "out"
    assert main(command(release, out)) == 0
    assert required(out).missing["zh"] == f"{CANGJIE_FILE} of the release, which the checkpoint lacks"
    assert not (out / FOLDER).exists()


@pytest.mark.parametrize(("text", "message"), CANGJIE.items(), ids=lambda value: value[:20])
def test_unsuitable_cangjie_table_is_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / CANGJIE_FILE
    path.write_text(text)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        languages.read_cangjie(path)


def test_cangjie_table_numbers_characters_with_equal_codes(tmp_path: Path) -> None:
    """As in the authors' class, the last code of a character with several codes is used."""
    path = tmp_path / CANGJIE_FILE
    path.write_text(json.dumps(["甲\ta", "乙\ta\t9", "甲\tb", "丙\ta", "乙\ta"]))
    assert languages.read_cangjie(path) == {"甲": "b", "乙": "a1", "丙": "a2"}


def test_checkpoint_missing_a_language_token_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    changed = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))
    path = changed / "tokenizer.json"
    path.write_text(path.read_text().replace('"[fr]"', '"[xx]"'))
    with pytest.raises(CheckpointError, match=r"expected language tokens, got no \[fr\]"):
        open_chatterbox(changed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"languages": ["xx"]}, "languages: expected some of ar, da"),
        ({"languages": "fr"}, "languages"),
        ({"num_text_ids": -3}, "expected ids and positions of text"),
        ({"num_text_positions": 0}, "expected ids and positions of text"),
        ({"num_voice_rows": "8"}, "num_voice_rows"),
        ({"more": 1}, "more"),
        ({"num_text_ids": 300}, "expected at most 300 tokens"),
    ],
)
def test_invalid_vocabulary_error_names_the_field(
    checkpoint: Path, tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    copied = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))
    record = json.loads((copied / "config.json").read_text())
    record["speech_vocabulary"] |= changed
    (copied / "config.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError) as error:
        Preprocessor(copied)
    assert message in str(error.value)
