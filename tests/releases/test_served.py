"""Model repositories of installed models: made once, and made again only if the package has changed."""

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stretto.launcher.options import read_options
from stretto.releases import run as module
from stretto.releases import store as installed_models
from stretto.releases.hub import Hub
from stretto.releases.install import BUILD, Choices, Installer
from stretto.releases.jobs import JobProcess
from stretto.releases.run import Devices, served
from stretto.releases.store import InstalledModels
from stretto.releases.target import parse
from tests.installed_models import install, profile
from tests.patience import PATIENCE_S
from tests.read_only import run_read_only


class FakeBuilder:
    """Makes empty model repositories, and records the arguments. `wait` is called in the middle of each."""

    def __init__(self) -> None:
        self.made: list[dict[str, Any]] = []
        self.wait: Callable[[], object] = lambda: None

    def call(self, job: str, **values: Any) -> dict[str, Any]:
        assert job == "repository"
        self.made.append(values)
        Path(values["out"]).mkdir()
        self.wait()
        return profile()


@pytest.fixture
def builder() -> Any:
    return FakeBuilder()


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of each file and folder."""
    found = [folder, *folder.rglob("*")]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in found}


def test_repository_is_made_once(tmp_path: Path, builder: Any) -> None:
    model = install(tmp_path)
    first = served(model, Devices(), InstalledModels(tmp_path), builder)
    assert first.folder == model.folder / "served-cpu"
    assert first.profile == profile()
    assert builder.made == [
        {
            "checkpoint": str(model.checkpoint),
            "out": str(first.folder),
            "model": ["voice", model.manifest.key, model.manifest.sources[0]["commit"]],
            "placement": None,
            "quantize": None,
            "gpu": None,
            "serving": "balanced",
        }
    ]
    before = files(tmp_path)
    assert served(model, Devices(), InstalledModels(tmp_path), builder) == first
    assert len(builder.made) == 1
    assert files(tmp_path) == before, "a finished repository is used also from a read-only folder"
    other = served(model, Devices(serving="latency"), InstalledModels(tmp_path), builder)
    assert (other.folder.name, builder.made[1]["serving"]) == ("served-cpu-latency", "latency")


def test_model_in_a_read_only_folder_is_served_from_the_cache(
    tmp_path: Path, builder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    models = InstalledModels(tmp_path / "models")
    model = install(models.folder)
    before = files(models.folder)
    # as on a read-only file system, also for root
    monkeypatch.setattr(os, "access", lambda path, mode: not Path(path).is_relative_to(models.folder))
    first = served(model, Devices(), models, builder)
    assert (first.profile, files(models.folder)) == (profile(), before)
    assert first.folder.is_relative_to(tmp_path / "cache")
    assert builder.made[0]["checkpoint"] == str(model.checkpoint)
    assert served(model, Devices(), models, builder) == first
    assert len(builder.made) == 1
    another = install(tmp_path / "others")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert served(another, Devices(), InstalledModels(tmp_path / "others"), builder).folder != first.folder
    models.remove(model)
    assert not first.folder.exists()


SERVE = """
import sys
from pathlib import Path
from stretto.releases.store import InstalledModels
from stretto.releases.run import Devices, served
from tests.releases.test_served import FakeBuilder
models, builder = InstalledModels(Path(sys.argv[1])), FakeBuilder()
(model,) = models.all()
folders = [served(model, Devices(), models, builder).folder for _ in range(2)]
assert folders[0] == folders[1] and len(builder.made) == 1
print(folders[0])
"""


def test_model_on_a_read_only_file_system_is_served_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above, which replaces the answer of the system, is for systems that permit no mounts."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "models"
    install(folder)
    before = files(folder)
    done = run_read_only(folder, SERVE, str(folder))
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(tmp_path / "cache")
    assert files(folder) == before


def test_repository_is_made_again_for_another_version(
    tmp_path: Path, builder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = install(tmp_path)
    found = served(model, Devices(), InstalledModels(tmp_path), builder)
    (found.folder / "old").touch()
    monkeypatch.setattr(module, "version", lambda name: "99")
    served(model, Devices(), InstalledModels(tmp_path), builder)
    assert len(builder.made) == 2
    assert not (found.folder / "old").exists()
    served(model, Devices(), InstalledModels(tmp_path), builder)
    assert len(builder.made) == 2


def test_stamp_depends_on_each_bundled_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "bundled_repository", lambda: tmp_path)
    code = tmp_path / "language_model" / "1" / "model.py"
    code.parent.mkdir(parents=True)
    seen = [module.stamp()]
    for path, text in {code: "a", code.parents[1] / "config.pbtxt": "a", code.with_name("other.py"): ""}.items():
        path.write_text(text)
        seen.append(module.stamp())
    code.write_text("b")
    seen.append(module.stamp())
    assert len(set(seen)) == len(seen)
    code.write_text("a")
    assert module.stamp() == seen[3]


def test_stamp_covers_what_repositories_contain() -> None:
    """A model repository has configurations and Python files of the bundled one."""
    assert {path.suffix for path in module.bundled_repository().rglob("*") if path.is_file()} >= {".pbtxt", ".py"}


NONE = ["", "{", "[]", "{}", "[" * 100_000, '{"stamp": "0", "profile": {}}', '{"stamp": null}', '{"stamp": "STAMP"}']
ODD_PROFILES: list[Any] = [
    5,
    {},
    profile() | {"tasks": {}},
    profile() | {"tasks": [{"name": "tts", "needs": "text", "speaks": True}]},
    profile() | {"voices": [5]},
    profile() | {"family": None},
]


@pytest.mark.parametrize("text", [*NONE, *(json.dumps({"stamp": "STAMP", "profile": each}) for each in ODD_PROFILES)])
def test_unfinished_repository_is_made_again(tmp_path: Path, builder: Any, text: str) -> None:
    model = install(tmp_path)
    folder = model.folder / "served-cpu"
    folder.mkdir()
    (folder / module.RECORD).write_text(text.replace("STAMP", module.stamp()))
    assert served(model, Devices(), InstalledModels(tmp_path), builder).profile == profile()
    assert len(builder.made) == 1
    record = json.loads((folder / module.RECORD).read_text())
    assert record == {"stamp": module.stamp(), "profile": profile()}


def test_two_at_once_make_one_repository(tmp_path: Path, builder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = install(tmp_path)
    waits = threading.Event()
    monkeypatch.setattr(installed_models, "line", lambda *words: waits.set())
    found = []

    def serve() -> None:
        found.append(served(model, Devices(), InstalledModels(tmp_path), builder))

    second = threading.Thread(target=serve)

    def begin_second() -> None:
        second.start()
        assert waits.wait(PATIENCE_S), "the second one waits for the first"

    builder.wait = begin_second
    serve()
    second.join(PATIENCE_S)
    assert len(found) == 2
    assert found[0] == found[1]
    assert len(builder.made) == 1


@pytest.mark.parametrize(
    ("devices", "name", "environment", "placement"),
    [
        (Devices(), "served-cpu", {}, None),
        (Devices(quantize="int8"), "served-cpu-int8", {}, None),
        (Devices(gpu=2), "served-gpu2", {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "2"}, (0, None)),
        (
            Devices(2, 5, "fp8", "exact", mps=True),
            "served-gpu2-codec5-fp8-exact-mps",
            {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "2,5"},
            (0, 1),
        ),
    ],
)
def test_devices(
    devices: Devices, name: str, environment: dict[str, str], placement: tuple[int, int | None] | None
) -> None:
    assert devices.folder_name == name
    assert devices.environment == environment
    found = devices.placement
    assert (None if found is None else (found["gpu"], found["codec_device"])) == placement
    if found is not None:
        assert found["shares_by_mps"] == devices.mps
        assert found["convolutions"] == devices.convolutions


def test_each_choice_of_devices_has_its_repository(tmp_path: Path, builder: Any) -> None:
    model = install(tmp_path)
    for devices in (Devices(), Devices(gpu=0), Devices(gpu=0, quantize="fp8")):
        for _ in range(2):
            served(model, devices, InstalledModels(tmp_path), builder)
    assert [Path(each["out"]).name for each in builder.made] == ["served-cpu", "served-gpu0", "served-gpu0-fp8"]
    assert [(each["gpu"], each["quantize"]) for each in builder.made] == [(None, None), (0, None), (0, "fp8")]


def test_checkpoint_of_the_user_is_served_as_it_is(
    tmp_path: Path, builder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, models = tmp_path / "Checkpoint", InstalledModels(tmp_path / "models")
    own.mkdir()
    (own / "config.json").write_text('{"speech_family": "tiny"}')
    (own / "model.safetensors").write_bytes(b"weights")
    before = files(own)
    monkeypatch.chdir(tmp_path)
    with Hub() as hub:
        installer = Installer(models, hub, builder, Choices(is_for_cpu=True))
        model = installer.install(parse("./Checkpoint"))
        assert served(model, Devices(), models, builder).folder == model.folder / "served-cpu"
        assert installer.install(parse("./Checkpoint")) == model
        (own / "model.safetensors").write_bytes(b"other weights")
        changed = files(own)
        other = installer.install(parse(str(own)))
    assert builder.made[0]["checkpoint"] == str(own)
    assert (model.manifest.name, model.manifest.num_bytes) == ("checkpoint", 0)
    assert other.manifest.key != model.manifest.key, "a server of the other weights is another model"
    assert files(own) == changed
    assert before.keys() == changed.keys()


@pytest.mark.slow
def test_repository_names_the_model(tmp_path: Path) -> None:
    """A real one, for the bundled checkpoint."""
    checkpoint = module.bundled_repository() / "language_model" / "1" / "checkpoint"
    with Hub() as hub, JobProcess(BUILD) as builder:
        models = InstalledModels(tmp_path)
        model = Installer(models, hub, builder, Choices(is_for_cpu=True)).install(parse(str(checkpoint)))
        found = served(model, Devices(), models, builder)
    options = read_options(found.folder).model
    assert options is not None
    assert (options.name, options.key) == ("checkpoint", model.manifest.key)
    assert {each["name"] for each in found.profile["tasks"]} >= {"tts", "asr"}
