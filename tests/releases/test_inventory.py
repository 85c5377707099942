"""`stretto list` and `stretto rm`: which models are installed, and what may be removed."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Self

import pytest

from stretto.cli import main
from stretto.launcher.options import ServedModel
from stretto.launcher.running import RunningServer
from stretto.releases import show
from stretto.releases.store import InstalledModels, Request
from tests.installed_models import install

Files = set[tuple[str, str, str]]


class FakeHub:
    """Records which files are removed from the cache."""

    removed: ClassVar[list[Files]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def remove(self, files: Files) -> int:
        self.removed.append(files)
        return 3_000_000


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of the installed models; no server is running."""
    monkeypatch.setenv("STRETTO_MODELS", str(tmp_path / "models"))
    monkeypatch.setattr(show, "running_servers", list)
    monkeypatch.setattr(show, "Hub", FakeHub)
    monkeypatch.setattr(FakeHub, "removed", [])
    return tmp_path / "models"


def names(folder: Path) -> list[str]:
    return [each.manifest.name for each in InstalledModels(folder).all()]


def test_list_prints_a_line_for_each_model(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    assert capsys.readouterr().out.split() == list(show.HEADINGS)
    install(models)
    install(models, "acme/\x1bbad")
    install(models, "/home/me/mine", checkpoint="/home/me/mine", sources=(), files={})
    assert main(["list"]) == 0
    heading, bad, mine, voice = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert heading == list(show.HEADINGS)
    assert bad[0] == "?bad", "no control characters"
    assert mine == ["mine", "-", "2026-11-25", "/home/me/mine", "-"]
    assert voice == ["voice", "0.0", "MB", "2026-11-25", "acme/voice", "ccccccc"]


def test_list_prints_manifests_as_json(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = install(models)
    assert main(["list", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["name"], found["key"], found["folder"]) == ("voice", model.manifest.key, str(model.folder))
    assert found["request"]["release"] == "acme/voice"


@pytest.mark.parametrize("word", ["voice", "acme/voice"])
def test_rm_removes_by_name_and_by_repository(models: Path, capsys: pytest.CaptureFixture[str], word: str) -> None:
    model = install(models)
    install(models, "acme/other")
    assert main(["rm", word]) == 0
    assert capsys.readouterr().err == f"removed      {model.folder.name}: 0.0 MB\n"
    assert names(models) == ["other"]
    assert not model.folder.exists()
    assert FakeHub.removed == []


@pytest.mark.parametrize("word", ["qwen3-tts", "qwen3-tts-1.7b"])
def test_rm_takes_the_names_that_run_takes(models: Path, word: str) -> None:
    model, other = install(models, "qwen3-tts"), install(models, "acme/qwen3-tts")
    assert main(["rm", word]) == 0
    assert not model.folder.exists()
    assert other.folder.exists(), "a repository of another owner"


@pytest.mark.parametrize("word", ["./mine", "../{folder}/mine", "{path}/mine"])
def test_rm_removes_a_checkpoint_of_the_user_from_the_list_only(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    own = tmp_path / "mine"
    own.mkdir()
    (own / "config.json").write_text("{}")
    install(models, str(own), request=Request(str(own), content="0"), checkpoint=str(own), sources=(), files={})
    monkeypatch.chdir(tmp_path)
    assert main(["rm", word.format(folder=tmp_path.name, path=tmp_path)]) == 0
    assert names(models) == []
    assert [path.name for path in own.iterdir()] == ["config.json"]


def test_rm_of_another_name_fails(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install(models)
    assert main(["rm", "voices"]) == 5
    assert capsys.readouterr().err == "stretto rm: voices is not installed (stretto list)\n"
    assert names(models) == ["voice"]


def test_rm_refuses_a_served_model(
    models: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = install(models)
    served = ServedModel("voice", model.manifest.key)
    server = RunningServer(os.getpid(), "ready", "", served, {"http": 8000}, Path("/x.pid"), "/x.log")
    other = RunningServer(1, "ready", "", None, {"http": 9000}, Path("/y.pid"), "/y.log")
    monkeypatch.setattr(show, "running_servers", lambda: [other, server])
    assert main(["rm", "voice"]) == 1
    expected = f"stretto rm: voice is served by pid {os.getpid()}: stop it with stretto serve --stop\n"
    assert capsys.readouterr().err == expected
    assert names(models) == ["voice"]
    elsewhere = ServedModel(
        "voice", model.manifest.key, str(models.parent / "other" / model.folder.name / "served-cpu")
    )
    monkeypatch.setattr(show, "running_servers", lambda: [replace(server, model=elsewhere)])
    assert main(["rm", "voice"]) == 0, "a server of another folder of models"


def test_rm_sources_keeps_what_other_models_use(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared, own, other = (
        {"repository": f"acme/{name}", "commit": letter * 40, "files": ["a", "b"]}
        for name, letter in (("codec", "a"), ("v", "b"), ("w", "c"))
    )
    install(models, "acme/v", sources=(own, shared))
    install(models, "acme/w", sources=(other, shared))
    assert main(["rm", "v", "--sources"]) == 0
    assert FakeHub.removed == [{("acme/v", "b" * 40, "a"), ("acme/v", "b" * 40, "b")}]
    assert capsys.readouterr().err.endswith("removed      3.0 MB of the hub's cache\n")


@pytest.mark.parametrize("words", [["list"], ["rm", "voice"]])
def test_user_without_a_home_folder_must_name_the_folder(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("STRETTO_MODELS", raising=False)

    def no_home() -> Path:
        raise show.ReleaseError("user 7 has no home folder")

    monkeypatch.setattr("stretto.releases.show.InstalledModels", no_home)
    assert main(words) == 1
    assert capsys.readouterr().err == f"stretto {words[0]}: user 7 has no home folder\n"
