"""Equal trees give equal bytes, whenever and by whomever they are packed."""

import io
import tarfile
from pathlib import Path

import pytest

from scripts.same_bytes import EPOCH, main

FILES = {"stretto-1/PKG-INFO": b"Name: stretto", "stretto-1/run.sh": b"#!/bin/sh", "stretto-1/empty": b""}


def packed(path: Path, names: list[str], mtime: int, uid: int, umask: int) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        folder = tarfile.TarInfo("stretto-1")
        folder.type, folder.mtime, folder.mode = tarfile.DIRTYPE, mtime, 0o777 & ~umask
        archive.addfile(folder)
        for name in names:
            member = tarfile.TarInfo(name)
            member.size, member.mtime, member.uid, member.uname = len(FILES[name]), mtime, uid, f"user{uid}"
            member.mode = (0o777 if name.endswith(".sh") else 0o666) & ~umask
            archive.addfile(member, io.BytesIO(FILES[name]))
    return path


def test_sdists_of_one_tree_become_byte_identical(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = packed(tmp_path / "one.tar.gz", list(FILES), 1_000_000_000, 0, 0o022)
    other = packed(tmp_path / "other.tar.gz", list(reversed(FILES)), 1_600_000_001, 1000, 0o077)
    assert one.read_bytes() != other.read_bytes()
    monkeypatch.setenv(EPOCH, "1700000000")
    assert main([str(one), str(other)]) == 0
    assert one.read_bytes() == other.read_bytes()
    with tarfile.open(one) as archive:
        assert archive.getnames() == ["stretto-1", *sorted(FILES)]
        assert {member.mtime for member in archive.getmembers()} == {1_700_000_000}
        assert {name: archive.extractfile(name).read() for name in FILES} == FILES  # type: ignore[union-attr]
        assert archive.getmember("stretto-1/run.sh").mode == 0o755
        assert archive.getmember("stretto-1/PKG-INFO").mode == 0o644


def test_different_tree_gives_different_archive_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = packed(tmp_path / "one.tar.gz", list(FILES), 0, 0, 0)
    other = packed(tmp_path / "other.tar.gz", list(FILES)[:-1], 0, 0, 0)
    monkeypatch.setenv(EPOCH, "1700000000")
    main([str(one), str(other)])
    assert one.read_bytes() != other.read_bytes()


@pytest.mark.parametrize("epoch", [None, "", "yesterday", "-1"])
def test_source_date_epoch_is_required(epoch: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(EPOCH, raising=False)
    if epoch is not None:
        monkeypatch.setenv(EPOCH, epoch)
    assert main([str(tmp_path / "none.tar.gz")]) == 2
