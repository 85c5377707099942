"""A server on free ports for as long as a `with` lasts, started as `stretto serve` does."""

import argparse
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import results_file
from benchmarks.results_file import ROOT
from stretto.launcher import background

START_S, STOP_S = 1500.0, 60.0
PORTS = range(10_000, 23_000)  # below Linux's ip_local_port_range, which begins at 32768
TAIL = 3000  # characters of the server's log in the error of a start that failed

_claims: list[socket.socket] = []


def free_ports(count: int) -> list[int]:
    """`count` ports on which nobody listens now, and which no other process of the tests and benchmarks is given.

    None that the kernel gives to whoever asks for any: a server takes its ports only when its models are loaded, and by
    then one of the many connections of an engine could have got it. Each is claimed until this process ends by a UDP
    socket of the same number, which is in no server's way. ConnectionError where there are no more.
    """
    found: list[int] = []
    order = random.SystemRandom().sample(PORTS, len(PORTS))  # whoever seeds `random` would get those of another
    while len(found) < count:
        if not order:
            raise ConnectionError(f"{len(found)} of {count} free ports in {PORTS}")
        port = order.pop()
        claim = socket.socket(type=socket.SOCK_DGRAM)
        with socket.socket() as probe:
            try:
                claim.bind(("", port))
                probe.bind(("", port))
            except OSError:
                claim.close()
                continue
        _claims.append(claim)
        found.append(port)
    return found


@dataclass
class Launch:
    """A launcher, `stretto serve`, on ports of its own, with all that it writes in `folder`.

    environment: of the launcher and so of all its processes, beside this process's own. gateway: its port, if there is
    to be one.
    """

    repository: Path
    folder: Path
    python: str | Path = sys.executable
    environment: Mapping[str, str] = field(default_factory=dict)
    ports: list[int] = field(default_factory=lambda: free_ports(3))
    gateway: int | None = None

    def __post_init__(self) -> None:
        self.http, self.grpc, self.metrics = self.ports
        self.record, self.log = self.folder / "serve.json", self.folder / "log"

    @property
    def address(self) -> str:
        """Of its gRPC service."""
        return f"localhost:{self.grpc}"

    @property
    def pid(self) -> int:
        """The launcher's."""
        return self._launcher.pid

    def start(self) -> None:
        """Start it and wait until it is ready; RuntimeError with the end of its log where it is not."""
        self.record.unlink(missing_ok=True)  # of one that was killed
        flags: dict[str, object] = {"--model-repository": self.repository, "--pid-file": self.record}
        flags |= {"--log-file": self.log, "--http-port": self.http, "--grpc-port": self.grpc}
        flags |= {"--metrics-port": self.metrics}
        if self.gateway is not None:
            flags |= {"--gateway-port": self.gateway}
        command = [str(self.python), "-m", "stretto", "serve", *(str(word) for flag in flags.items() for word in flag)]
        command += ["--gateway"] * (self.gateway is not None)
        self._launcher = subprocess.Popen(command, env=dict(os.environ) | dict(self.environment))
        try:
            _await(self._launcher, self.record, self.log)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop it, and wait until it has ended."""
        self._launcher.terminate()
        self.wait()

    def wait(self) -> None:
        """Wait until it has ended."""
        self._launcher.wait(STOP_S)


@contextmanager
def serving(repository: Path, python: str | Path = sys.executable) -> Iterator[str]:
    """The gRPC address of a server that is ready; RuntimeError with the end of its log where it does not start."""
    with tempfile.TemporaryDirectory() as folder:
        launch = Launch(repository, Path(folder), python)
        launch.start()
        try:
            yield launch.address
        finally:
            launch.stop()


def _await(launcher: subprocess.Popen[bytes], record: Path, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while (background.read(record) or {}).get("state") != "ready":
        if launcher.poll() is not None or time.monotonic() > deadline:
            said = log.read_text(errors="replace")[-TAIL:] if log.exists() else ""
            raise RuntimeError(f"the server of {record} did not become ready:\n{said}")
        time.sleep(0.2)


def command_line(description: str | None, benchmark: str) -> argparse.ArgumentParser:
    """The flags of a benchmark that starts a server, and of itself only those that all have."""
    parser = results_file.command_line(description, benchmark)
    parser.add_argument("--model-repository", type=Path, default=ROOT / "model_repository")
    return parser


def stop_on_sigterm() -> None:
    """Have SIGTERM end this process as an exit does, so that its server is stopped."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
