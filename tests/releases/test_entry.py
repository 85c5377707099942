"""Records of published releases: strict keys, valid values, and the converter's arguments."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from stretto.errors import CheckpointError
from stretto.releases.catalogue import Companion, ReleaseEntry, RepositoryFiles, read_table

FULL: dict[str, Any] = {
    "name": "voice",
    "aliases": ["voice-large"],
    "family": "example_family",
    "source": {
        "repository": "acme/voice",
        "revision": "0" * 40,
        "files": ["*.safetensors"],
        "exclude": ["old/*"],
        "licence": {"id": "MIT", "url": "https://example.org", "commercial": "yes", "facts": ["free"]},
        "gated": "auto",
        "sizes": {"model.safetensors": 7},
        "sha256": {"model.safetensors": "a" * 64},
    },
    "companions": [{"source": {"repository": "acme/codec", "files": ["*"]}, "option": "--words", "to": "voices"}],
    "convert": ["--model", "{repo}/model.safetensors", "--codec", "{companion1}"],
    "shape": {"hidden": 64},
    "smaller": "voice-small",
    "default_voice": "ann",
    "languages": ["english"],
    "tasks": ["tts"],
    "needs": ["recording"],
    "checked": "2026-11-25, CPU",
    "serves": False,
    "evidence": {"licence": "model card"},
    "unproved": ["sizes"],
}


def read(record: dict[str, Any]) -> ReleaseEntry:
    """Return the entry of a table with one record."""
    (entry,) = read_table(json.dumps({"releases": [record]}), "table")
    return entry


def test_all_fields_are_read() -> None:
    entry = read(FULL)
    assert (entry.name, entry.aliases, entry.smaller) == ("voice", ("voice-large",), "voice-small")
    assert entry.source.licence.facts == ("free",)
    assert entry.companions == (Companion(RepositoryFiles("acme/codec", ("*",)), "--words", "voices"),)
    assert [each.repository for each in entry.repositories] == ["acme/voice", "acme/codec"]
    assert (entry.serves, entry.unproved, entry.evidence) == (False, ("sizes",), {"licence": "model card"})
    words = entry.arguments(Path("/a"), [Path("/b")])
    assert words == ["example-family", "--model", "/a/model.safetensors", "--codec", "/b"]


def test_minimal_record_is_read() -> None:
    record = {"name": "v", "family": "f", "source": {"repository": "a/b", "files": ["*"]}, "convert": []}
    assert read(record) == ReleaseEntry("v", "f", RepositoryFiles("a/b", ("*",)), ())


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("name", "Voice", "a name like"),
        ("name", "a" * 42, "a name like"),
        ("aliases", ["a/b"], "a name like"),
        ("colour", 1, r"releases\[0\].colour: .*unknown key"),
        ("source.size", {}, "source.size: .*unknown key"),
        ("source.licence.name", "", "licence.name: .*unknown key"),
        ("source.repository", "acme", "expected OWNER/NAME, got 'acme'"),
        ("source.repository", "../x", "expected OWNER/NAME"),
        ("source.repository", "a/" + "b" * 96, "expected OWNER/NAME"),
        ("source.revision", "main", "40 hexadecimal digits, got 'main'"),
        ("source.files", [], "at least one pattern, got 0"),
        ("source.files", "*", "a list of at least one pattern"),
        ("source.gated", False, "expected one of no, auto, manual, unknown, got False"),
        ("source.licence.commercial", "NV", "expected one of yes, no, conditions, unknown, got 'NV'"),
        ("source.licence.facts", ["1", "2", "3", "4"], "at most 3 texts, got 4"),
        ("source.sizes", {"a": "7 GB"}, "sizes.a: expected a valid integer"),
        ("source.sha256", {"a": "x"}, "sha256.a: expected 64 hexadecimal digits"),
        ("companions", [{"repository": "a/b"}], "source: expected"),
        ("convert", ["{other}"], "the placeholders"),
        ("convert", ["{companion2}"], "the placeholders"),
        ("needs", ["money"], "expected one of recording, instruct"),
        ("unproved", ["price"], "expected one of revision"),
        ("evidence", {"licence": 3}, "evidence.licence: expected a valid string, got 3"),
        ("serves", "no", "serves: expected a valid boolean"),
    ],
)
def test_invalid_values_are_refused(path: str, value: Any, message: str) -> None:
    record = copy.deepcopy(FULL)
    *folders, last = path.split(".")
    place = record
    for each in folders:
        place = place[each]
    place[last] = value
    with pytest.raises(CheckpointError, match=message) as raised:
        read(record)
    assert str(raised.value).startswith("table")


@pytest.mark.parametrize("missing", ["name", "family", "source", "convert"])
def test_missing_values_are_named(missing: str) -> None:
    record = {name: value for name, value in FULL.items() if name != missing}
    with pytest.raises(CheckpointError, match=f"{missing}: expected .*, got none"):
        read(record)
