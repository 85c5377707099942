"""Installation of a release, its interruption and its failures."""

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lab.releases.random_qwen3_tts import write_with_codec
from stretto.cli import main
from stretto.convert.release import DTYPES as CONVERTED_DTYPES
from stretto.releases.hub import Hub
from stretto.releases.install import BUILD, DTYPES, Choices, Installer, cache_folder
from stretto.releases.jobs import JobProcess
from stretto.releases.messages import ReleaseError
from stretto.releases.store import InstalledModel, InstalledModels
from stretto.releases.target import Folder, parse
from tests import hub as loopback
from tests.held_processes import held_at
from tests.hub import Repository
from tests.installed_models import install
from tests.releases.test_fetch import prepared
from tests.tiers import by_night

pytestmark = pytest.mark.slow

PROGRAM = "import sys; from stretto.cli import main; sys.exit(main(sys.argv[1:]))"
# The check of the headers writes files that are as large as those of the release.
WITHOUT_CHECK = f"from stretto.releases import install; install.LARGE_BYTES = 1 << 60; {PROGRAM}"
WITH_CHECK = f"from stretto.releases import install; install.LARGE_BYTES = 100_000; {PROGRAM}"
FOR_CPU = Choices(is_for_cpu=True, updates=True)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_with_codec(tmp_path_factory.mktemp("release") / "voice")


@pytest.fixture(scope="module")
def server() -> Iterator[loopback.Hub]:
    with loopback.Hub() as server:
        yield server


@pytest.fixture
def repository(server: loopback.Hub, release: Path) -> Repository:
    """Return the repository acme/voice with a release, made anew for each test."""
    server.faults.clear()
    return server.add("acme/voice", release, card={"license": "mit"})


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def children(server: loopback.Hub, home: Path) -> Iterator[tuple[Hub, JobProcess]]:
    """Yield the two child processes, which are started once for all tests in this process."""
    with pytest.MonkeyPatch.context() as monkeypatch, Hub() as hub, JobProcess(BUILD) as builder:
        prepared(monkeypatch, home, server.url)
        hub.worker._process, builder._process  # noqa: B018 - start with this environment
        yield hub, builder


@pytest.fixture
def models(tmp_path: Path) -> InstalledModels:
    return InstalledModels(tmp_path / "models")


def contents(release: Path) -> dict[str, bytes]:
    """Return the files of a folder by path."""
    return {str(path.relative_to(release)): path.read_bytes() for path in release.rglob("*") if path.is_file()}


class Pull:
    """Installs in this process."""

    def __init__(self, models: InstalledModels, children: tuple[Hub, JobProcess]) -> None:
        self._models, self._children = models, children

    def __call__(self, name: str = "acme/voice", **choices: Any) -> InstalledModel:
        return Installer(self._models, *self._children, replace(FOR_CPU, **choices)).install(parse(name))


@pytest.fixture
def pull(models: InstalledModels, children: tuple[Hub, JobProcess], repository: Repository) -> Pull:
    return Pull(models, children)


def files_in(folder: Path) -> dict[str, int]:
    """Return the time of each file, by path."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found[str(path.relative_to(folder))] = path.stat().st_mtime_ns
    return found


def leftovers(models: InstalledModels) -> list[str]:
    """Return the names of staging folders, and of models without a manifest."""
    folders = [each for each in models.folder.glob("*/") if each.name != ".locks"]
    return [each.name for each in folders if not (each / "manifest.json").exists()]


def test_model_is_published_with_its_manifest(
    pull: Pull, models: InstalledModels, repository: Repository, server: loopback.Hub, capfd: pytest.CaptureFixture[str]
) -> None:
    model = pull()
    manifest = model.manifest
    assert (manifest.name, manifest.family, manifest.request.release) == ("voice", "qwen3_tts", "acme/voice")
    (source,) = manifest.sources
    assert (source["repository"], source["commit"]) == ("acme/voice", repository.branches["main"])
    assert {*source["files"]} > {"model.safetensors", "speech_tokenizer/model.safetensors"}
    assert manifest.licences == {"acme/voice": "MIT"}
    assert set(manifest.files) == {
        str(path.relative_to(model.checkpoint)) for path in model.checkpoint.rglob("*") if path.is_file()
    }
    assert model.damage() == ""
    assert models.all() == [model]
    assert not leftovers(models)
    errors = capfd.readouterr().err
    assert ".staging" not in errors
    assert "\r" not in errors
    assert "\x1b" not in errors
    before, asked = files_in(models.folder), len(server.requests)
    assert pull(updates=False) == model
    assert len(server.requests) == asked, "an installed model is found without the hub"
    assert files_in(models.folder) == before


def test_new_commit_is_taken_by_pull_only(
    pull: Pull, models: InstalledModels, repository: Repository, release: Path
) -> None:
    first = pull()
    repository.commit(contents(release) | {"README.md": b"new"})
    assert pull(updates=False) == first
    second = pull()
    assert second != first
    assert pull(updates=False) == second
    assert models.all() == [first, second]
    commits = [each.manifest.sources[0]["commit"] for each in (first, second)]
    assert [pull(updates=False, revision=commit) for commit in commits] == [first, second]


def test_main_that_went_back_and_other_revisions_are_installed_once(
    pull: Pull, models: InstalledModels, repository: Repository, release: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, old = pull(), repository.branches["main"]
    repository.commit(contents(release) | {"README.md": b"new"})
    second = pull()
    repository.branches |= {"v1": repository.branches["main"], "main": old}
    capsys.readouterr()
    assert pull().folder == first.folder
    for is_offline in (False, True):
        assert pull(updates=False, is_offline=is_offline).folder == first.folder
    assert pull(updates=False, revision="v1").folder == second.folder
    repository.branches["v1"] = old
    assert pull(updates=False, revision="v1").folder == second.folder, "the hub is not asked again"
    assert pull(revision="v1").folder == first.folder
    assert pull(updates=False, is_offline=True, revision="v1").folder == first.folder
    assert len(models.all()) == 2
    assert "converting" not in capsys.readouterr().err


def test_licence_is_accepted_for_its_text(pull: Pull, repository: Repository, release: Path) -> None:
    repository.card["license"] = "cc-by-nc-4.0"
    files = contents(release) | {"LICENSE.md": b"No commercial use."}
    repository.commit(files)
    pull(accepts_licence=True)
    repository.commit(files | {"README.md": b"new"})
    pull()
    repository.commit(files | {"LICENSE.md": b"No use."})
    with pytest.raises(ReleaseError, match=r"use --accept-license$") as caught:
        pull()
    assert caught.value.status == 6


def test_force_installs_again(pull: Pull, models: InstalledModels) -> None:
    first = pull()
    second = pull(is_forced=True)
    assert first.folder == second.folder
    assert second.manifest.date > first.manifest.date
    assert models.all() == [second]
    assert not leftovers(models)


def test_sources_are_dropped_except_those_of_other_models(
    pull: Pull,
    models: InstalledModels,
    repository: Repository,
    server: loopback.Hub,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, commit = pull(), repository.branches["main"]
    shared = {"repository": repository.name, "commit": commit, "files": ["model.safetensors"]}
    other = install(models.folder, "acme/other", sources=(shared,))
    prepared(monkeypatch, home, server.url, STRETTO_MODELS=str(models.folder))
    snapshot = home / "hub" / "models--acme--voice" / "snapshots" / commit
    words = ["pull", repository.name, "--cpu", "--drop-sources"]
    assert main(words) == 0
    assert {*files_in(snapshot)} & {*model.manifest.sources[0]["files"]} == {"model.safetensors"}
    assert "kept         1 files that other installed models were made from, too\n" in capsys.readouterr().err
    models.remove(other)
    assert main(words) == 0
    assert not {*files_in(snapshot)} & {*model.manifest.sources[0]["files"]}
    assert "kept" not in capsys.readouterr().err
    asked = len(server.requests)
    assert [pull(updates=False).folder, pull().folder] == [model.folder] * 2
    assert server.requests[asked:]
    assert not [each for each in server.requests[asked:] if each.storage], "only small texts are asked for again"


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_damaged_checkpoint_is_reported_and_installed_again(
    damage: str, pull: Pull, capsys: pytest.CaptureFixture[str]
) -> None:
    model = pull()
    name = next(each for each in model.manifest.files if each.endswith(".safetensors"))
    path = model.checkpoint / name
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        os.truncate(path, 100)
    assert pull(updates=False).damage() == ""
    about = "is missing" if damage == "missing" else f"has 100 bytes, not {len(whole)}"
    assert f"damaged      {model.folder}: {name} {about}\n" in capsys.readouterr().err
    assert path.read_bytes() == whole


def test_installed_model_is_found_offline_and_in_a_folder_that_is_not_changed(
    pull: Pull, models: InstalledModels, server: loopback.Hub
) -> None:
    model = pull()
    before, asked = files_in(models.folder), len(server.requests)
    for updates in (False, True):
        assert pull(updates=updates, is_offline=True) == model
    assert len(server.requests) == asked
    assert files_in(models.folder) == before
    with pytest.raises(ReleaseError, match=r"acme/other is not installed \(stretto pull acme/other\)") as caught:
        pull("acme/other", is_offline=True)
    assert caught.value.status == 5


def test_dtypes_are_those_of_the_conversion() -> None:
    """Listed twice, because the front process imports no large library."""
    assert set(DTYPES) == set(CONVERTED_DTYPES)


@pytest.mark.nightly
@pytest.mark.parametrize(("more", "number"), [((), 1), (("--dtype", "float32"), 2)])
def test_two_at_once_convert_each_model_once(
    more: tuple[str, ...], number: int, pull: Pull, models: InstalledModels, server: loopback.Hub, home: Path
) -> None:
    environment = server.environment(home, STRETTO_MODELS=str(models.folder))
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda words: run(environment, "pull", "acme/voice", "--cpu", *words), ((), more)))
    assert [each.returncode for each in done] == [0, 0], done
    assert sum("converting" in each.stderr for each in done) == number
    assert len(models.all()) == number
    assert not leftovers(models)


def run(
    environment: dict[str, str], *words: str, program: str = PROGRAM, **settings: Any
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, *(words or ("pull", "acme/voice", "--cpu"))]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL, **settings
    )


def test_front_process_imports_no_large_library_and_prints_no_token(
    pull: Pull, models: InstalledModels, server: loopback.Hub, home: Path
) -> None:
    pull()
    server.grants = {"secret-token": set()}
    code = "import sys; from stretto.cli import main; status = main(sys.argv[1:])\n"
    code += "assert not {'torch', 'huggingface_hub', 'transformers', 'vllm'} & sys.modules.keys(); sys.exit(status)"
    first = len(server.requests)
    done = subprocess.run(
        [sys.executable, "-c", code, "pull", "acme/voice", "--cpu"],
        env=server.environment(home, STRETTO_MODELS=str(models.folder), HF_TOKEN="secret-token"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert {each.token for each in server.requests[first:]} == {"secret-token"}
    assert "secret-token" not in done.stderr + done.stdout
    assert not [path for path in models.folder.rglob("*") if path.is_file() and b"secret-token" in path.read_bytes()]


def test_control_characters_of_the_hub_are_not_printed(
    pull: Pull, repository: Repository, release: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    repository.card["license"] = "mit\x1b[2J\u202e\r\n"
    odd = "speech_tokenizer/a\x1b[31m\u202e\n.json"
    files = contents(release)
    repository.commit(files | {odd: files["config.json"]})
    with suppress(ReleaseError):  # for the name of the voice
        pull(accepts_licence=True)
    errors = capfd.readouterr().err
    assert "mit?[2J" in errors
    assert not {"\x1b", "\r", "\u202e"} & {*errors}


def test_release_that_cannot_be_converted_is_named_without_the_staging_folder(
    pull: Pull, models: InstalledModels, repository: Repository, release: Path
) -> None:
    repository.commit(contents(release) | {"model.safetensors": b"none"})
    with pytest.raises(ReleaseError) as caught:
        pull()
    assert ".staging" not in str(caught.value)
    assert "acme/voice" in str(caught.value)
    assert caught.value.status == 1
    assert models.all() == []
    assert not leftovers(models)


@pytest.mark.nightly
@pytest.mark.parametrize("step", ["downloading", "converting"])
def test_full_disk(
    step: str,
    models: InstalledModels,
    release: Path,
    server: loopback.Hub,
    home: Path,
    repository: Repository,
    pull: Pull,
) -> None:
    shutil.rmtree(home, ignore_errors=True)
    environment, limit = server.environment(home, STRETTO_MODELS=str(models.folder)), 100_000
    name = repository.name if step == "downloading" else str(release)
    done = run(
        environment,
        *("pull", name, "--cpu"),
        program=WITHOUT_CHECK,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 7, done.stderr
    assert f"\n{step} " in done.stderr
    assert done.stderr.splitlines()[-1].endswith("File too large")
    assert "Traceback" not in done.stderr
    assert ".staging" not in done.stderr
    assert models.all() == []
    assert not leftovers(models)
    assert not list(home.rglob("*.incomplete"))


SMALL_DISK = """
mount -t tmpfs -o size=200k tmpfs "$1" || exit 99
shift
"$@"
status=$?
ls -A "$STRETTO_MODELS"
exit $status
"""


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("is_cached", "force", "expected"),
    [
        (True, [], r"STRETTO_MODELS and HF_HOME choose other places"),
        (True, ["--force"], r"No space left on device"),
        (False, ["--force"], r"check: the disk of the models or of the hub's cache is full, .*"),
    ],
)
def test_small_disk(
    is_cached: bool,
    force: list[str],
    expected: str,
    models: InstalledModels,
    server: loopback.Hub,
    home: Path,
    repository: Repository,
    pull: Pull,
) -> None:
    pull()  # so that all files are in the hub's cache; the small disk hides the model
    if not is_cached:
        shutil.rmtree(home)
    environment = server.environment(home, STRETTO_MODELS=str(models.folder))
    words = [sys.executable, "-c", WITH_CHECK, "pull", repository.name, "--cpu", *force]
    command = ["unshare", "--mount", "sh", "-c", SMALL_DISK, "sh", str(models.folder), *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode in (1, 99) and "stretto pull" not in done.stderr:
        pytest.skip(f"mounting needs root: {done.stderr}")
    assert done.returncode == 7, done.stderr
    assert re.search(f"{expected}$", done.stderr.splitlines()[-1]), done.stderr
    assert {*done.stdout.split()} <= {".locks", ".staging-guard"}


def test_unknown_argument_of_the_converter_is_refused_before_the_download(pull: Pull, server: loopback.Hub) -> None:
    first = len(server.requests)
    with pytest.raises(ReleaseError, match="unrecognized arguments: --nosuch 1") as caught:
        pull(arguments=("--nosuch", "1"))
    assert caught.value.status == 2
    assert not [each for each in server.requests[first:] if each.storage]


def test_folder_with_a_link_to_another_place_is_refused(
    pull: Pull, models: InstalledModels, release: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "voice"
    shutil.copytree(release, folder)
    secret = tmp_path / "secret"
    secret.write_text("mine")
    (folder / "speech_tokenizer" / "x.json").symlink_to(secret)
    with pytest.raises(ReleaseError, match=f"expected a file of this release, got a link to {secret}") as caught:
        pull(str(folder))
    assert caught.value.status == 2
    assert models.all() == []


def test_folder_is_listed_once_and_not_changed(
    pull: Pull, models: InstalledModels, release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, listed, original = files_in(release), list[Path](), Folder.__init__

    def list_files(self: Folder, path: Path) -> None:
        listed.append(path)
        original(self, path)

    monkeypatch.setattr(Folder, "__init__", list_files)
    model = pull(str(release))
    assert listed == [release]
    assert pull(str(release)) == model
    assert listed == [release] * 2
    assert files_in(release) == before
    inodes = {path.stat().st_ino for path in release.rglob("*")}
    assert not [path for path in model.folder.rglob("*") if path.stat().st_ino in inodes]


# A hub that stalls holds the installation here.
HELD = {
    "asking": "/api/models/acme/voice",
    "recognising": "HEAD /acme/voice/resolve/.*/config.json",
    "downloading": "GET /acme/voice/model.safetensors/",
}
# Elsewhere it is held before an event with these arguments: in the front process, in the hub's client or in the
# converter.
EVENTS = {
    "locking": ("open", r"/\.locks/voice--\w+\.lock a"),
    "staging": ("os.mkdir", r"/\.staging-[0-9a-f]{8} "),
    "verifying": ("open", r"/snapshots/\w+/model\.safetensors r"),
    "linking": ("os.link", r"/files/0/vocab\.json"),
    "planning": ("open", r"/files/0/config\.json r"),
    "writing": ("open", r"/checkpoint\.partial/.*\.safetensors w"),
    "finishing": ("os.rename", r"/checkpoint\.partial "),
    "recording": ("open", r"/manifest\.json\.new w"),
    "publishing": ("os.rename", r"/\.staging-\w+ .*/voice--\w+ "),
    "published": ("os.remove", r"/voice--\w+/lock "),
}
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
BY_DAY = [("downloading", signal.SIGKILL), ("converting", signal.SIGTERM)]
POINTS = [(point, number) for point in (*HELD, *EVENTS, "converting") for number in SIGNALS]


@pytest.mark.parametrize(("point", "number"), [*BY_DAY, *by_night(*(each for each in POINTS if each not in BY_DAY))])
def test_interrupted_installation_leaves_nothing(
    point: str, number: int, pull: Pull, models: InstalledModels, server: loopback.Hub, home: Path, tmp_path: Path
) -> None:
    shutil.rmtree(home, ignore_errors=True)
    environment, mark = server.environment(home, STRETTO_MODELS=str(models.folder)), tmp_path / "mark"
    log, fault = tmp_path / "log", None
    if point in HELD:
        drop_after = 100_000 if point == "downloading" else None
        fault = server.fail(HELD[point], held=threading.Event(), drop_after=drop_after)
    elif point in EVENTS:
        environment |= held_at(*EVENTS[point], mark)
    command = [sys.executable, "-c", PROGRAM, "pull", "acme/voice", "--cpu"]

    def is_reached() -> bool:
        if point in HELD:
            files = (name for _, _, names in os.walk(home) for name in names)  # ignores folders that vanish meanwhile
            is_written = point != "downloading" or any(name.endswith(".incomplete") for name in files)
            return fault is not None and fault.times <= 0 and is_written
        return mark.exists() if point in EVENTS else "converting" in log.read_text()

    with log.open("w") as output, subprocess.Popen(command, env=environment, stderr=output) as process:
        while not is_reached():
            assert process.poll() is None, log.read_text()
            time.sleep(0.01)
        children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
        process.send_signal(number)
        assert process.wait() == (-number if number == signal.SIGKILL else 130)
    assert children
    while any(is_running(pid) for pid in children):
        time.sleep(0.01)
    assert "Traceback" not in log.read_text()
    before = models.all()
    assert len(before) == (point == "published")
    if number != signal.SIGKILL:
        assert not leftovers(models)
    if fault is not None and fault.held is not None:
        fault.held.set()
    model = pull()
    assert [each.folder for each in models.all()] == [model.folder]
    assert not before or before[0].manifest.date == model.manifest.date, "a published model is not made again"
    assert not leftovers(models)
    assert not list(home.rglob("*.incomplete"))


def is_running(pid: int) -> bool:
    """Return True if a process exists and has not ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.mark.nightly
def test_model_that_is_installed_again_is_removed_afterwards(
    pull: Pull, models: InstalledModels, server: loopback.Hub, release: Path, home: Path
) -> None:
    server.add("acme/renewed", release, card={"license": "mit"})
    pull("acme/renewed")
    environment = server.environment(home, STRETTO_MODELS=str(models.folder))
    command = [sys.executable, "-c", PROGRAM, "pull", "acme/renewed", "--cpu", "--force"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while not process.stderr.readline().startswith("converting"):
            pass
        removed = run(environment, "rm", "renewed")
        process.stderr.read()
        assert process.wait() == 0
    assert removed.returncode == 0
    assert "waiting" in removed.stderr
    assert models.all() == []
    assert not leftovers(models)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"HF_HUB_CACHE": "/a/hub", "HF_HOME": "/b"}, "/a/hub"),
        ({"HF_HOME": "/b"}, "/b/hub"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/huggingface/hub"),
        ({"HOME": "/d"}, "/d/.cache/huggingface/hub"),
        ({"HF_HOME": "~no-such-user/x"}, "~no-such-user/x/hub"),
    ],
)
def test_cache_is_that_of_the_client_library(
    variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(expected)
