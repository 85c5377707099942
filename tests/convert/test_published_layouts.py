"""Releases of all families convert with their published file names, also from a snapshot of the hub's cache.

A link in a release leads to files of the same release only, whichever file or subfolder it replaces.
"""

import os
import shutil
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from huggingface_hub.utils._shared_blobs import publish_blob_to_shared_store

from stretto.convert.command import main
from tests.family_releases import LAYOUTS
from tests.refused_conversion import refused
from tests.tiers import by_night

BY_DAY = "espnet/OpusLM_7B_Anneal"  # with subfolders
TIERS = [BY_DAY, *by_night(*(name for name in LAYOUTS if name != BY_DAY))]
Written = tuple[str, Path, list[str]]


@pytest.fixture(scope="module")
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Return the name of a layout, the folder of its release, and the converter's arguments."""
    folder = tmp_path_factory.mktemp("layout") / "published"
    folder.mkdir()
    return request.param, folder, LAYOUTS[request.param].command(folder)


def names(folder: Path) -> list[str]:
    """Return the paths of all files in a folder."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def moved(words: list[str], folder: Path, to: Path) -> list[str]:
    """Return the converter's arguments for a copy of the release."""
    return [word.replace(str(folder), str(to)) for word in words]


@pytest.mark.parametrize("written", TIERS, indirect=True)
def test_release_with_published_names_converts(written: Written, tmp_path: Path) -> None:
    name, folder, words = written
    layout = LAYOUTS[name]
    listed = [f"{place}/{file}".removeprefix("./") for place, files in layout.files.items() for file in files]
    listed += layout.added
    found = names(folder)
    assert [file for file in found if not any(fnmatchcase(file, each) for each in listed)] == []
    assert [each for each in listed if not any(fnmatchcase(file, each) for file in found)] == []
    assert main([*words, "--out", str(tmp_path / "out")]) == 0


def write_snapshot(folder: Path, cache: Path) -> Path:
    """Write a folder as a snapshot of the hub's cache; every other file is in the store that repositories share."""
    repository = cache / "models--owner--name"
    snapshot, blobs = repository / "snapshots" / "0123", repository / "blobs"
    blobs.mkdir(parents=True)
    for number, name in enumerate(names(folder)):
        blob, file = blobs / f"{number:040d}", snapshot / name
        shutil.copy(folder / name, blob)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.symlink_to(os.path.relpath(blob, file.parent))
        if number % 2:
            size = blob.stat().st_size
            assert publish_blob_to_shared_store(
                blob_path=str(blob),
                xet_hash=f"{number:064x}",
                cache_dir=str(cache),
                expected_size=size,
                replace_existing=False,
            )
            assert blob.is_symlink()
    return snapshot


@pytest.mark.parametrize("written", TIERS, indirect=True)
def test_snapshot_of_the_hub_cache_converts(written: Written, tmp_path: Path) -> None:
    _, folder, words = written
    snapshot = write_snapshot(folder, tmp_path / "hub")
    assert main([*moved(words, folder, snapshot), "--out", str(tmp_path / "out")]) == 0


def linked(folder: Path, name: str, tmp_path: Path) -> Path:
    """Return a copy of a release in which a file or subfolder is a link to a place outside."""
    copy = Path(shutil.copytree(folder, tmp_path / name.replace("/", "-") / "copy", copy_function=os.link))
    outside = copy.parent / "private"
    (copy / name).rename(outside)
    (copy / name).symlink_to(outside)
    return copy


@pytest.mark.parametrize("written", TIERS, indirect=True)
def test_files_and_folders_outside_the_release_are_refused(
    written: Written, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Except for those that the command line names."""
    layout, folder, words = written
    given = [Path(word).relative_to(folder).as_posix() for word in words if word.startswith(str(folder))]
    places = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    for name in places:
        if name in LAYOUTS[layout].unused or any(f"{file}/".startswith(f"{name}/") for file in given):
            continue
        copy, out = linked(folder, name, tmp_path), tmp_path / "out"
        said = refused([*moved(words, folder, copy), "--out", str(out)], out, capsys)
        assert "of this release, got a link to " in said, (name, said)
