"""A real server for all tests in this folder, started through the launcher as by a user.

Its current folder has modules with the names of all others, none of which may be executed.
"""

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from stretto.convert.make_repository import make
from stretto.launcher.installation import bundled_repository
from stretto.triton_io.flow import FlowTable
from tests.hostile_folder import executed, without_current_folder, write_hostile_folder
from tests.patience import PATIENCE_S
from tests.ports import free_ports
from tests.published_checkpoints import convert, write_release
from tests.published_xeus import write_xeus
from tests.server.listening import Answer, Stream, as_inputs
from tests.server.published import PublishedModel

# Another repository than the bundled one, for the same tests on another checkpoint.
REPOSITORY = Path(os.environ.get("STRETTO_MODEL_REPOSITORY", bundled_repository()))
START_S = 1500.0  # for ten starts: the launcher gives up before


class Server:
    """A launcher and its server; `start` does nothing while one runs.

    `flags` are further arguments for the launcher. `hostile` is its current folder.
    """

    def __init__(
        self, folder: Path, repository: Path = REPOSITORY, *flags: str, python: str | Path = sys.executable
    ) -> None:
        self.folder, self.repository, self.flags, self.python = folder, repository.absolute(), flags, python
        self.hostile = write_hostile_folder(folder / "hostile")
        self.pid_file = folder / "serve.json"
        self.http, self.grpc, self.metrics = free_ports(3)
        self.launcher: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        if self.launcher is not None and self.launcher.poll() is None:
            self.until_ready()
            return
        ports = {"--http-port": self.http, "--grpc-port": self.grpc, "--metrics-port": self.metrics}
        flags = {"--model-repository": self.repository, "--pid-file": self.pid_file, "--log-file": self.folder / "log"}
        arguments = [str(part) for pair in (flags | ports).items() for part in pair]
        with (self.folder / "launcher").open("ab") as said:
            command = [self.python, "-P", "-m", "stretto", "serve", *arguments, *self.flags]
            self.launcher = subprocess.Popen(
                command, stderr=said, cwd=self.hostile, env=without_current_folder(os.environ)
            )
        self.until_ready()

    def until_ready(self, timeout_s: float = START_S) -> None:
        deadline = time.monotonic() + timeout_s
        while self.state() != "ready":
            assert self.launcher is not None
            assert self.launcher.poll() is None, self.said
            assert time.monotonic() < deadline, self.said
            time.sleep(0.1)
        assert "has refused the first request" not in self.said

    def state(self) -> str | None:
        return json.loads(self.pid_file.read_text())["state"] if self.pid_file.exists() else None

    def stop(self) -> None:
        if self.launcher is not None:
            self.launcher.terminate()
            self.launcher.wait(PATIENCE_S)
        assert executed(self.hostile) == ""

    @property
    def said(self) -> str:
        return (self.folder / "launcher").read_text()

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    @property
    def pid(self) -> int:
        """Pid of the tritonserver that is ready now."""
        return int(self.said.rpartition("; pid ")[2].split()[0])

    def ask(self, options: str | dict[str, Any] | None = None, **inputs: Any) -> Answer:
        return self.stream(options, **inputs).listen()

    def stream(self, options: str | dict[str, Any] | None = None, **inputs: Any) -> Stream:
        return Stream(self.grpc, **as_inputs(options, inputs))

    def refuses(self, inputs: dict[str, Any], message: str) -> None:
        """Check that a request with these inputs is refused with this message, which begins with the field."""
        answer = self.ask(**inputs)
        assert answer.error is not None, inputs
        assert f"invalid request: {message}" in answer.error

    def until(self, condition: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def metric(self, name: str) -> float:
        with urllib.request.urlopen(f"http://localhost:{self.metrics}/metrics", timeout=60) as page:
            lines = page.read().decode().splitlines()
        (value,) = [float(line.split()[-1]) for line in lines if line.startswith(f"stretto_{name}{{")]
        return value

    def table(self) -> FlowTable:
        """The language model's table of utterances in flight."""
        (path,) = Path("/dev/shm").glob(f"stretto_flow_{self.pid}_*")
        return FlowTable.open(path.name)


@dataclass(frozen=True)
class ServedCheckpoint:
    """A server and the checkpoint that it serves."""

    server: Server
    checkpoint: Path


@dataclass(frozen=True)
class ServedRelease:
    """A published family's server, and the expected answers of its model."""

    name: str
    server: Server
    model: PublishedModel


@contextmanager
def served_repository(folder: Path, repository: Path, *flags: str) -> Iterator[Server]:
    """Yield a ready server for a model repository; it writes only to `folder`."""
    server = Server(folder, repository, *flags)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@contextmanager
def served_checkpoint(folder: Path, checkpoint: Path) -> Iterator[Server]:
    """Yield a server for a converted checkpoint; its repository and output are in `folder`."""
    make(checkpoint, folder / "repository", {})
    with served_repository(folder, folder / "repository") as server:
        yield server


def serves(convert: Callable[[Path], Path]) -> Any:
    """Return a module fixture that serves the checkpoint that `convert` writes to a folder."""

    @pytest.fixture(scope="module")
    def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedCheckpoint]:
        folder = tmp_path_factory.mktemp("served")
        checkpoint = convert(folder)
        with served_checkpoint(folder, checkpoint) as server:
            yield ServedCheckpoint(server, checkpoint)

    return served


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], ServedRelease]]:
    """Serve a published family with random weights by name, from its first use until the last test.

    There is no fixture per family, because pytest would restart the servers repeatedly.
    """
    with ExitStack() as servers:

        @cache
        def served(name: str) -> ServedRelease:
            folder = tmp_path_factory.mktemp(name)
            published = write_release(name, folder / "release", seed=1)
            hears = ["--ssl-tokenizer", str(write_xeus(folder / "xeus"))] if name == "opuslm" else []
            checkpoint = convert(name, published, folder / "converted", *hears)
            server = servers.enter_context(served_checkpoint(folder, checkpoint))
            return ServedRelease(name, server, PublishedModel(published, checkpoint))

        yield served


@pytest.fixture(scope="session")
def _server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.stop()


@pytest.fixture
def server(_server: Server) -> Server:
    """Yield the ready server."""
    _server.start()
    return _server
