"""Folder of the installed models: only a folder with a valid manifest and complete files is used."""

import errno
import json
import os
import threading
from dataclasses import replace
from pathlib import Path
from queue import Queue
from typing import Any

import pytest

from stretto.releases import store as module
from stretto.releases.messages import DoesNotFit, ReleaseError
from stretto.releases.store import MANIFEST, STAGING, InstalledModel, InstalledModels, Request, installing, link
from tests.installed_models import CONTENT, install
from tests.patience import PATIENCE_S


def folders(folder: Path) -> set[str]:
    return {each.name for each in folder.iterdir() if each.is_dir()} - {".locks"}


def change(model: InstalledModel, **values: Any) -> None:
    """Change values of a model's manifest on the disk."""
    path = model.folder / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_published_model_is_found(tmp_path: Path) -> None:
    model = install(tmp_path)
    assert InstalledModels(tmp_path).find(Request("acme/voice")) == model
    assert InstalledModels(tmp_path).find(Request("acme/voice"), "v1") is None
    assert sorted(path.name for path in model.folder.iterdir()) == ["checkpoint", MANIFEST]
    assert folders(tmp_path) == {model.folder.name}


@pytest.mark.parametrize(
    "values",
    [
        {"name": "../voice"},
        {"name": "other"},
        {"key": "0" * 16},
        {"date": 5},
        {"version": None},
        {"family": ["tiny"]},
        {"files": []},
        {"files": {"model.safetensors": 7}},
        {"files": {"model.safetensors": {"bytes": "7"}}},
        {"sources": [5]},
        {"sources": [{"repository": "acme/voice"}]},
        {"sources": [{"repository": "acme/voice", "commit": "c" * 40}]},
        {"sources": [{"repository": "acme/voice", "commit": "c" * 40, "files": [5]}]},
        {"sources": 5},
        {"checkpoint": 5},
        {"resolved": {"main": 5}},
        {"resolved": ["main"]},
        {"default_voice": 5},
        {"request": {"release": "acme/voice"}},
        {"request": []},
        {"request": {"release": "acme/voice", "arguments": [], "more": 1}},
        {"more": 1},
    ],
)
def test_folder_with_an_invalid_manifest_is_no_model(values: dict[str, Any], tmp_path: Path) -> None:
    model, other = install(tmp_path), install(tmp_path, "acme/other")
    change(model, **values)
    assert InstalledModels(tmp_path).all() == [other]
    assert InstalledModels(tmp_path).find(model.manifest.request) is None
    assert install(tmp_path) == model, "the folder is replaced"
    assert len(InstalledModels(tmp_path).all()) == 2


@pytest.mark.parametrize("text", ["", "{", "[]", "5", "[" * 100_000, '{"name": 1e999999}', "\udcff", "{}" * 2])
def test_manifest_that_is_no_object_is_ignored(text: str, tmp_path: Path) -> None:
    (install(tmp_path).folder / MANIFEST).write_text(text, errors="surrogateescape")
    assert InstalledModels(tmp_path).all() == []


def test_manifest_that_would_block_is_ignored(tmp_path: Path) -> None:
    path = install(tmp_path).folder / MANIFEST
    path.unlink()
    os.mkfifo(path)
    assert InstalledModels(tmp_path).all() == []


@pytest.mark.parametrize(
    ("name", "about"),
    [("none", "none is missing"), ("a\0b", "a\0b is missing"), ("model.safetensors", "has 7 bytes, not 8")],
)
def test_damage_is_reported(name: str, about: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = install(tmp_path, files={name: {"bytes": len(CONTENT) + 1, "sha256": "0"}})
    assert about in model.damage()
    assert InstalledModels(tmp_path).find(model.manifest.request) is None
    assert InstalledModels(tmp_path).with_key(model.manifest.name, model.manifest.key) is None
    assert capsys.readouterr().err.startswith(f"damaged      {model.folder}: ")


def test_model_that_a_revision_was_last_resolved_to_is_used(tmp_path: Path) -> None:
    models, source = InstalledModels(tmp_path), {"repository": "acme/voice", "commit": "d" * 40, "files": []}
    first = install(tmp_path, date="2020-01-01T10:00:00")
    second = install(tmp_path, key="1" * 16, date="2020-01-02T10:00:00", sources=(source,))
    request = first.manifest.request
    assert models.all() == [first, second]
    assert models.find(request) == second
    first = models.resolved(first, "v1")
    assert (models.find(request), models.find(request, "v1"), models.find(request, "v2")) == (second, first, None)
    assert (models.find(request, "c" * 40), models.find(request, "d" * 40)) == (first, second)
    first = models.resolved(first, "main")
    assert models.find(request) == first
    assert models.all() == [first, second]
    (first.checkpoint / "model.safetensors").unlink()
    assert models.find(request) is None, "the other model is of another commit"


def test_failed_installation_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(ReleaseError, match=f"^{tmp_path}/checkpoint: wrong$"),
        InstalledModels(tmp_path).staging() as staging,
    ):
        raise ReleaseError(f"{staging}/checkpoint: wrong")
    assert not folders(tmp_path)


def test_full_disk_is_reported_without_the_staging_folder(tmp_path: Path) -> None:
    with (
        pytest.raises(DoesNotFit, match=f"^{tmp_path}/x: No space left on device$"),
        InstalledModels(tmp_path).staging() as at,
    ):
        raise OSError(28, os.strerror(28), str(at / "x"))
    with pytest.raises(DoesNotFit, match=f"^{tmp_path}: No space left on device$"), InstalledModels(tmp_path).staging():
        raise OSError(28, os.strerror(28))


def test_folders_of_ended_processes_are_removed_and_those_of_others_kept(tmp_path: Path) -> None:
    left = tmp_path / f"{STAGING}left"
    (left / "checkpoint").mkdir(parents=True)
    (left / "lock").touch()
    (tmp_path / f"{STAGING}without-lock").mkdir()
    elsewhere = tmp_path.parent / f"{tmp_path.name}-mine"
    elsewhere.mkdir()
    (elsewhere / "file").touch()
    (tmp_path / f"{STAGING}link").symlink_to(elsewhere)
    with InstalledModels(tmp_path).staging() as first, InstalledModels(tmp_path).staging() as second:
        assert first.is_dir()
        assert second.is_dir()
        assert not left.exists()
        assert not (tmp_path / f"{STAGING}without-lock").exists()
    assert (elsewhere / "file").exists()


def test_another_installation_leaves_a_model_alone_while_it_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = module._sync

    def sync(folder: Path) -> None:
        with InstalledModels(tmp_path).staging():  # of another process
            original(folder)

    monkeypatch.setattr(module, "_sync", sync)
    model = install(tmp_path)
    assert InstalledModels(tmp_path).all() == [model]
    assert model.damage() == ""


def test_link_in_the_place_of_a_model_is_replaced_and_its_target_kept(tmp_path: Path) -> None:
    models = tmp_path / "models"
    model = install(models)
    moved = model.folder.rename(tmp_path / "moved")
    model.folder.symlink_to(moved)
    assert InstalledModels(models).all() == [model]
    assert install(models) == model
    assert not model.folder.is_symlink()
    assert (moved / MANIFEST).exists()
    InstalledModels(models).remove(model)
    model.folder.symlink_to(moved)
    InstalledModels(models).remove(model)
    assert not model.folder.is_symlink()
    assert (moved / MANIFEST).exists()


def test_removed_model_is_gone_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = install(tmp_path)
    monkeypatch.setattr(module.shutil, "rmtree", lambda *words, **more: None)  # the process is killed here
    InstalledModels(tmp_path).remove(model)
    assert InstalledModels(tmp_path).all() == []
    monkeypatch.undo()
    with InstalledModels(tmp_path).staging():
        pass
    assert not folders(tmp_path), "the next installation removes the rest"


def test_lock_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models, order, lines = InstalledModels(tmp_path), list[str](), Queue[tuple[str, ...]]()
    monkeypatch.setattr(module, "line", lambda *words: lines.put(words))

    def second() -> None:
        with models.lock("voice--1"):
            order.append("second")

    with models.lock("voice--1"):
        thread = threading.Thread(target=second)
        thread.start()
        assert lines.get(timeout=PATIENCE_S) == ("waiting", f"for stretto (pid {os.getpid()}), which installs voice")
        assert list(installing(models)) == ["voice"]
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert installing(models) == {}


@pytest.mark.parametrize("kind", ["file", "below-file", "link-to-nothing"])
def test_models_folder_that_cannot_be_made(kind: str, tmp_path: Path) -> None:
    place = tmp_path / "place"
    if kind == "link-to-nothing":
        place.symlink_to(tmp_path / "none" / "none")
    else:
        place.write_text("")
    models = InstalledModels(place / "models" if kind == "below-file" else place)
    assert models.all() == []
    assert models.find(Request("acme/voice")) is None
    with pytest.raises(ReleaseError, match="STRETTO_MODELS names another folder"), models.lock("voice"):
        pass
    with pytest.raises(ReleaseError, match="STRETTO_MODELS names another folder"), models.staging():
        pass


def test_manifest_of_the_users_own_checkpoint(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    model = install(tmp_path / "models", files={}, checkpoint=str(own))
    assert model.checkpoint == own
    InstalledModels(tmp_path / "models").remove(model)
    assert own.is_dir()
    assert replace(model.manifest, files={}).num_bytes == 0


def test_file_that_cannot_be_read_is_named_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = install(tmp_path)
    stat = Path.stat

    def forbidden(path: Path, **options: bool) -> os.stat_result:
        if path.name == "model.safetensors":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", forbidden)
    assert model.damage() == "model.safetensors cannot be read: Permission denied"


def test_file_that_is_there_is_never_written_to(tmp_path: Path) -> None:
    """It may be a second name of a file in the hub's cache."""
    cached = tmp_path / "cached"
    other = tmp_path / "other"
    target = tmp_path / "view" / "name"
    cached.write_text("cached")
    other.write_text("other")
    link(cached, target)
    with pytest.raises(ReleaseError, match="expected one file of this name, got two"):
        link(other, target)
    assert cached.read_text() == "cached"
