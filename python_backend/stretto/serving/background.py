"""The server of this machine, for whoever asks without having started one."""

import fcntl
import importlib.util
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from stretto.serving import pid_file
from stretto.serving.config import default_pid_file, default_port
from stretto.serving.folders import state_folder
from stretto.serving.installation import CONTAINER_SERVER, LaunchError

# Not the current folder: what lies there must not take the place of this package.
LAUNCHER = (sys.executable, "-P", "-m", "stretto", "serve")
POLL_S = 0.3


class CannotServe(LaunchError):
    """No server runs, and what one needs is not installed."""


def ready_server() -> str:
    """The gRPC address of this machine's server; starts one where none runs, and returns when it is ready.

    Says where the page is, if there is one.
    """
    server = BackgroundServer(default_port(), state_folder())
    server.be_ready()
    if (page := server.page()) is not None:
        say(f"the page: {page}")
    return f"localhost:{server.port + 1}"


@dataclass(frozen=True, slots=True)
class BackgroundServer:
    """A server on `port` (HTTP) and the two after it, known by its files in `folder`."""

    port: int
    folder: Path
    launcher: tuple[str, ...] = LAUNCHER

    def be_ready(self) -> None:
        """Return when it is ready: one that runs, one that another call is starting, or one started here."""
        if self._is_there():
            return
        if self.launcher is LAUNCHER:
            require_installation(self.port)
        try:
            with self._only_call():
                self._start()
        except OSError as error:
            raise LaunchError(f"the server could not be started: {error}") from None

    def page(self) -> str | None:
        """The address of its gateway's page; None where its launcher was not asked for a gateway."""
        record = pid_file.read(default_pid_file(self.port, self.folder))
        port = None if record is None else record["ports"].get("gateway")
        return None if port is None else f"http://localhost:{port}/"

    def _is_there(self) -> bool:
        """Whether there is one to ask: ready, or one that no launcher of ours has started, as a container's."""
        state = self._state()
        return state == "ready" or (state is None and _listens(self.port + 1))

    def _state(self) -> str | None:
        record = pid_file.read(default_pid_file(self.port, self.folder))
        return None if record is None else str(record["state"])

    def _start(self) -> None:
        launcher: subprocess.Popen[bytes] | None = None
        begun = time.monotonic()
        while not self._is_there():
            if launcher is not None and launcher.poll() is not None:
                raise LaunchError(f"the server did not start:\n{self._said.read_text(errors='replace').rstrip()}")
            if launcher is None and self._state() is None:
                launcher = self._launch()
            if sys.stderr.isatty():
                print(f"\rloading the models ... {time.monotonic() - begun:.0f} s", end="", file=sys.stderr)
            time.sleep(POLL_S)
        if launcher is not None:
            start = "\r" if sys.stderr.isatty() else ""
            stop = "stretto serve --stop"
            say(f"{start}server ready after {time.monotonic() - begun:.0f} s; it stays for the next call, until {stop}")

    def _launch(self) -> "subprocess.Popen[bytes]":
        """A launcher in a session of its own: what ends this call must not end the server."""
        http, grpc, metrics = range(self.port, self.port + 3)
        log = self.folder / f"server-{http}.log"
        say(f"starting the server on ports {http} (HTTP), {grpc} (gRPC), {metrics} (metrics); log: {log}")
        ports = ("--http-port", http, "--grpc-port", grpc, "--metrics-port", metrics)
        files = ("--pid-file", default_pid_file(self.port, self.folder), "--log-file", log)
        command = [str(word) for word in (*self.launcher, *ports, *files)]
        # Without bytecode every start of vLLM takes 10 s longer.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        with self._said.open("wb") as said:
            return subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True
            )

    @property
    def _said(self) -> Path:
        """What the launcher writes."""
        return self.folder / f"serve-{self.port}.log"

    @contextmanager
    def _only_call(self) -> Iterator[None]:
        """Wait until no other call is starting the server."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"start-{self.port}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say("another call is starting the server: waiting for it")
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def require_installation(port: int) -> None:
    """CannotServe where a server or vLLM is not installed; looks without importing them."""
    has_server = CONTAINER_SERVER.exists() or importlib.util.find_spec("pytriton") is not None
    if not has_server or importlib.util.find_spec("vllm") is None:
        raise CannotServe(
            f"no server listens on port {port + 1}, and none can be started here: without the extra 'embedded' stretto "
            "has only its client; --server HOST:PORT names a server elsewhere"
        )


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def say(message: str) -> None:
    """A line for who waits; standard output is for what was asked for."""
    print(message, file=sys.stderr, flush=True)
