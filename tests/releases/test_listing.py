"""Listing of a release in a folder."""

from pathlib import Path

import pytest

from stretto.releases.catalogue import RepositoryFiles
from stretto.releases.hub import Snapshot
from stretto.releases.messages import BadArgument, Unavailable
from stretto.releases.target import Folder


def test_files_are_listed_by_their_paths(tmp_path: Path) -> None:
    (tmp_path / "voices/a").mkdir(parents=True)
    (tmp_path / ".cache").mkdir()
    for name in ("config.json", "voices/a/one.wav", ".cache/lock"):
        (tmp_path / name).write_text("{}")
    found = Folder(tmp_path)
    assert found.names == {"config.json", "voices/a/one.wav"}
    assert found.sizes == {"config.json": 2, "voices/a/one.wav": 2}
    assert found.text("config.json") == "{}"
    assert found.text("config.json", 1) is None
    assert found.text("../x") is None
    assert found.json("config.json") == {}


def test_link_to_another_folder_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("{}")
    folder = tmp_path / "release"
    folder.mkdir()
    (folder / "config.json").symlink_to(tmp_path / "secret")
    assert Folder(folder).text("config.json") is None


def test_malformed_files_are_empty(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[1]")
    (tmp_path / "a.yaml").write_text("a: [")
    (tmp_path / "b.json").write_bytes(b"\xff\xfe")
    (tmp_path / "c.yaml").write_text("top: 1\nmodel: !new:os.system {command: x}\nreference: !ref <top>\n")
    found = Folder(tmp_path)
    assert (found.json("config.json"), found.yaml("a.yaml"), found.json("b.json")) == ({}, {}, {})
    assert found.yaml("c.yaml") == {"top": 1, "model": None, "reference": None}


def test_file_and_empty_folder_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(BadArgument, match="got a path that does not exist"):
        Folder(path)
    with pytest.raises(BadArgument, match="got an empty folder"):
        Folder(tmp_path)
    path.write_text("")
    with pytest.raises(BadArgument, match="expected a folder with a release, got a file"):
        Folder(path)


def test_files_of_a_folder_are_selected_without_hashes() -> None:
    files = {"config.json": {"size": 2, "sha256": None}, "notes.txt": {"size": 1, "sha256": None}}
    source = RepositoryFiles("/release", ("*.json",))
    assert Snapshot("/release", "", None, files).selected(source) == {"config.json": files["config.json"]}
    with pytest.raises(Unavailable, match=r"no file \*\.pt, which the release must have"):
        Snapshot("/release", "", None, files).selected(RepositoryFiles("/release", ("*.pt",)))
