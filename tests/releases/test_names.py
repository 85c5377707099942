"""The table of published releases: unique names, and where other packages stand behind this one."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stretto.entry_points import FAMILIES, OWN, installed
from stretto.family.plugin import FamilyPlugin, plugins
from stretto.releases import catalogue as names
from stretto.releases.catalogue import ReleaseEntry, entries, find, nearest, read_entries


def test_names_are_unique_and_smaller_releases_exist() -> None:
    found = entries()
    uses = Counter(name for each in found for name in (each.name, *each.aliases))
    assert not [name for name, number in uses.items() if number > 1]
    assert {each.smaller for each in found} - {None} <= uses.keys()
    own = {each.name for each in installed(FAMILIES) if each.distribution == OWN}
    assert {each.family for each in found} <= own
    for each in plugins():
        assert {entry.family for entry in read_entries(each)} <= own


def test_release_is_found_by_name_and_alias() -> None:
    entry = find("qwen3-tts")
    assert entry is not None
    assert entry.source.repository == "Qwen/Qwen3-TTS-12Hz-1.7B-CustomVoice"
    assert find("qwen3-tts-1.7b") == entry
    assert find("Qwen3-TTS") is None
    assert find("qwen3_tts") is None


@pytest.mark.parametrize("text", ["qwen-tts", "qwen3-tts-0.7b", "Qwen/Qwen3-TTS-99Hz", "qwen/none-of-these"])
def test_nearest_names_are_suggested(text: str) -> None:
    found = nearest(text)
    assert found
    assert len(found) <= 3
    assert all(name.startswith("qwen3-") for name in found)


def test_unlike_text_has_no_nearest_names() -> None:
    assert nearest("zzzzzz") == []


def plugin_with(name: str, *releases: str) -> FamilyPlugin:
    """Return a plug-in whose table has releases of these names."""
    records = [
        {"name": each, "family": name, "source": {"repository": "acme/x", "files": ["*"]}, "convert": []}
        for each in releases
    ]
    folder = f"table of {name}:releases.json"
    TABLES[folder] = json.dumps({"releases": records})
    return FamilyPlugin(name, lambda vocabulary: None, releases=folder)  # type: ignore[arg-type, return-value]


TABLES: dict[str, str] = {}


def read_with(plugins: dict[str, FamilyPlugin], monkeypatch: pytest.MonkeyPatch) -> list[ReleaseEntry]:
    """Return the entries if `plugins`, by the distribution and the family's name, are installed."""
    found = [SimpleNamespace(name=each.name, distribution=key.split("/")[0]) for key, each in plugins.items()]
    by_name = {each.name: each for each in plugins.values()}
    monkeypatch.setattr(names, "installed", lambda group: found)
    monkeypatch.setattr(names, "plugin", by_name.get)
    monkeypatch.setattr(names, "resource", TABLES.get)
    return list(entries())


def test_another_package_cannot_replace_a_name(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    plugins = {
        f"{OWN}/a": plugin_with("a_family", "voice"),
        "other/b": plugin_with("b_family", "voice", "a-family", "new"),
    }
    found = read_with(plugins, monkeypatch)
    assert [(each.name, each.family) for each in found] == [("new", "b_family"), ("voice", "a_family")]
    assert "another package has a release of this name" in caplog.text


def test_name_of_two_packages_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    plugins = {"one/c": plugin_with("c_family", "voice"), "two/d": plugin_with("d_family", "voice", "other")}
    assert [each.name for each in read_with(plugins, monkeypatch)] == ["other"]


def test_invalid_table_is_skipped_with_a_warning(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    plugins = {"one/e": plugin_with("e_family", "Bad Name"), "two/f": plugin_with("f_family", "good")}
    assert [each.name for each in read_with(plugins, monkeypatch)] == ["good"]
    assert "Bad Name" in caplog.text


def test_names_are_read_without_heavy_libraries(tmp_path: Path) -> None:
    program = (
        "import sys; from stretto.releases.catalogue import entries; assert entries(); "
        "print(*{'torch', 'vllm', 'transformers', 'huggingface_hub'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.split() == []
