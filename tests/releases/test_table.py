"""The published releases of all families: every fact has a source, and the converter accepts each command."""

from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from lab.releases.codec_cases import of_plugins
from stretto.convert import command
from stretto.family.plugin import FamilyPlugin, plugins
from stretto.releases.catalogue import FACTS, ReleaseEntry, placeholders, read_entries

EXAMPLE = Path(__file__).parents[2] / "examples" / "custom_family"
WITHOUT_RELEASES = {"tiny"}  # the bundled model


def all_plugins() -> list[FamilyPlugin]:
    """Return the plug-ins of all built-in families, and of the example package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLE))
        from stretto_orpheus import PLUGIN
    return [*(each for each in plugins() if each.convert is not None), PLUGIN]


ENTRIES = {each.name: each for found in all_plugins() for each in read_entries(found)}


def test_each_convertible_family_has_a_release() -> None:
    families = {each.name for each in all_plugins()}
    assert families - {each.family for each in ENTRIES.values()} == WITHOUT_RELEASES & families
    assert len(ENTRIES) > 40


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_facts_have_a_source_or_are_marked(entry: ReleaseEntry) -> None:
    """A fact without a source has the value for unknown."""
    assert not {*entry.unproved} & entry.evidence.keys()
    source = entry.source
    assert (source.revision is None) == ("revision" in entry.unproved)
    assert (source.licence.id == "unknown") == ("licence" in entry.unproved)
    assert (source.licence.commercial == "unknown") == ("licence" in entry.unproved)
    assert (source.gated == "unknown") == ("gated" in entry.unproved)
    assert source.licence.url.startswith("https://")
    assert {*FACTS} - {"files", "shape"} <= {*entry.unproved, *entry.evidence}
    assert entry.shape is not None or "shape" not in {*entry.unproved, *entry.evidence}
    if "sizes" not in entry.unproved:
        assert source.sizes


def test_shape_is_known_for_every_served_family() -> None:
    """Without it, the KV cache of a release counts as nothing."""
    unknown = {each.name for each in ENTRIES.values() if each.serves and each.shape is None}
    assert unknown <= {"vita-audio-plus-vanilla", "orpheus"} | of_plugins("WITHOUT_SHAPE", "releases").keys()


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_converter_accepts_the_arguments(entry: ReleaseEntry, monkeypatch: pytest.MonkeyPatch) -> None:
    if entry.family == "orpheus":
        monkeypatch.setattr(command, "convertible", lambda: ["orpheus"])
    used = {name for word in entry.convert for name in placeholders(word)}
    for number, companion in enumerate(entry.companions, 1):
        assert (f"companion{number}" in used) != (companion.to is not None)
    assert ("view" in used) == any(each.to is not None for each in entry.companions)
    places = [Path("/c") / str(number) for number, _ in enumerate(entry.companions)]
    words = entry.arguments(Path("/r"), places, Path("/v"))
    parsed = command.arguments([*words, "--out", "/out"])
    assert parsed.family.replace("-", "_") == entry.family
    for name in ("model", "config", "tokenizer"):
        place = getattr(parsed, name)
        if place is None or place in (Path("/r"), Path("/v")):
            continue
        if place.is_relative_to("/r") or place.is_relative_to("/v"):
            inside = place.relative_to("/v" if place.is_relative_to("/v") else "/r").as_posix()
            folder = any(each.startswith(f"{inside}/") for each in entry.source.files)
            assert folder or any(fnmatchcase(inside, each) for each in entry.source.files), inside
        else:
            assert place.is_relative_to("/c")
