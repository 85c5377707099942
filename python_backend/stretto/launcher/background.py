"""Background server on this machine: pid file handling, and start on demand."""

import fcntl
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stretto.launcher.config import default_pid_file, default_port
from stretto.launcher.installation import CONTAINER_SERVER, LaunchError, state_folder
from stretto.launcher.processes import birth, read_process

STOP_SECONDS = 60.0  # default for records without a value
STATES = ("starting", "ready", "unready", "waiting", "draining")


def write(
    path: Path | None,
    state: str,
    ports: dict[str, int],
    log: str,
    reason: str = "",
    stop_seconds: float = STOP_SECONDS,
    serves: bool = False,
) -> None:
    """Replace the pid file atomically; do nothing if `path` is None.

    Args:
        path: Path of the file.
        state: One of STATES.
        ports: Port of each protocol.
        log: Path of the log.
        reason: Why the server is not ready; empty if nothing is wrong.
        stop_seconds: Maximum time that stopping the launcher takes, in seconds.
        serves: True if the server answers gRPC requests although the state is not `ready`, because of the gateway.
    """
    assert state in STATES, state
    if path is None:
        return
    record: dict[str, Any] = {
        "pid": os.getpid(),
        "born": birth(os.getpid()),
        "state": state,
        "ports": ports,
        "log": log,
    }
    record |= {"stop_seconds": stop_seconds, "version": version("stretto")}
    if reason:
        record["reason"] = reason
    if serves:
        record["serves"] = True
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(json.dumps(record) + "\n")
    scratch.replace(path)


def read(path: Path) -> dict[str, Any] | None:
    """Return the pid file's record, or None if the file is damaged or its launcher is not running."""
    try:
        record = json.loads(path.read_text())
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return record if _is_record(record) and _is_alive(record) else None


def _is_record(found: Any) -> bool:
    return isinstance(found, dict) and type(found.get("pid")) is int and found.get("state") in STATES


def _is_alive(record: dict[str, Any]) -> bool:
    """Return True if the process that wrote the record is still running.

    Another process that has reused its pid does not count.
    """
    return read_process(record["pid"]) is not None and birth(record["pid"]) == record.get("born")


def remove(path: Path | None) -> None:
    """Remove the pid file if this process wrote it."""
    record = None if path is None else read(path)
    if path is not None and record is not None and record["pid"] == os.getpid():
        path.unlink(missing_ok=True)


def stop(path: Path) -> bool:
    """Send SIGTERM to the launcher, and wait until it has drained and exited.

    Returns:
        False if no launcher was running.

    Raises:
        TimeoutError: If the launcher takes longer than the `stop_seconds` in its record.
    """
    record = read(path)
    if record is None:
        return False
    os.kill(record["pid"], signal.SIGTERM)
    stop_seconds = record.get("stop_seconds", STOP_SECONDS)
    deadline = time.monotonic() + stop_seconds
    while _is_alive(record):
        if time.monotonic() > deadline:
            raise TimeoutError(f"the launcher {record['pid']} has not stopped within {stop_seconds:g} s")
        time.sleep(0.1)
    return True


# -P: a module in the current folder must not shadow this package.
LAUNCHER = (sys.executable, "-P", "-m", "stretto", "serve")
POLL_S = 0.3


class CannotServe(LaunchError):
    """No server is running, and a component that is required to start one is not installed."""


def ready_server() -> str:
    """Return the gRPC address of this machine's server once it is ready; start the server if none is running.

    If the launcher runs a gateway, the URL of its web page is printed.
    """
    server = BackgroundServer(default_port(), state_folder())
    server.ensure_ready()
    if (page := server.page()) is not None:
        log_line(f"web page: {page}")
    return f"localhost:{server.port + 1}"


@dataclass(frozen=True, slots=True)
class BackgroundServer:
    """Server that listens on three consecutive ports and is found through its pid file.

    Attributes:
        port: HTTP port; gRPC and metrics use the next two.
        folder: Folder of the pid file and the logs.
        launcher: Command that starts the launcher.
    """

    port: int
    folder: Path
    launcher: tuple[str, ...] = LAUNCHER

    def ensure_ready(self) -> None:
        """Wait until the server is ready; start it if it is not running.

        Another process may be starting it at the same time; only one of them does.

        Raises:
            CannotServe: If a required component is not installed.
            LaunchError: If the server did not start.
        """
        if self._is_usable():
            return
        if self.launcher is LAUNCHER:
            require_installation(self.port)
        try:
            with self._start_lock():
                self._start()
        except OSError as error:
            reason = f"{error.filename or self.folder}: {error.strerror or error}"
            raise LaunchError(f"the server could not be started: {reason}") from None

    def page(self) -> str | None:
        """Return the URL of the gateway's web page, or None if the launcher runs no gateway."""
        record = read(default_pid_file(self.port, self.folder))
        port = None if record is None else record["ports"].get("gateway")
        return None if port is None else f"http://localhost:{port}/"

    def _is_usable(self) -> bool:
        """Return True if there is a usable server.

        A server is usable if its launcher reports it as ready, apart from the gateway. A server without a launcher (for
        example in a container) is usable if it listens on the gRPC port.
        """
        record = read(default_pid_file(self.port, self.folder))
        if record is None:
            return _listens(self.port + 1)
        return record["state"] == "ready" or record.get("serves") is True

    def _state(self) -> str | None:
        record = read(default_pid_file(self.port, self.folder))
        return None if record is None else str(record["state"])

    def _start(self) -> None:
        launcher: subprocess.Popen[bytes] | None = None
        begun = time.monotonic()
        while not self._is_usable():
            if launcher is not None and launcher.poll() is not None:
                raise LaunchError(
                    f"the server did not start:\n{self._output_file.read_text(errors='replace').rstrip()}"
                )
            if launcher is None and self._state() is None:
                launcher = self._launch()
            if sys.stderr.isatty():
                print(f"\rloading the models ... {time.monotonic() - begun:.0f} s", end="", file=sys.stderr)
            time.sleep(POLL_S)
        if launcher is not None:
            start = "\r" if sys.stderr.isatty() else ""
            stop = "stretto serve --stop"
            log_line(f"{start}server ready after {time.monotonic() - begun:.0f} s; it keeps running until {stop}")

    def _launch(self) -> "subprocess.Popen[bytes]":
        """Start the launcher in its own session, so that it does not receive signals meant for this process."""
        http, grpc, metrics = range(self.port, self.port + 3)
        log = self.folder / f"server-{http}.log"
        log_line(f"starting the server on ports {http} (HTTP), {grpc} (gRPC), {metrics} (metrics); log: {log}")
        ports = ("--http-port", http, "--grpc-port", grpc, "--metrics-port", metrics)
        files = ("--pid-file", default_pid_file(self.port, self.folder), "--log-file", log)
        command = [str(word) for word in (*self.launcher, *ports, *files)]
        # Without bytecode, every vLLM start takes 10 s longer.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        with self._output_file.open("wb") as output:
            return subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )

    @property
    def _output_file(self) -> Path:
        """File that receives the launcher's own output."""
        return self.folder / f"serve-{self.port}.log"

    @contextmanager
    def _start_lock(self) -> Iterator[None]:
        """Hold the start lock during the `with` block; wait if another process holds it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"start-{self.port}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log_line("another process is starting the server; waiting for it")
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def require_installation(port: int) -> None:
    """Raise CannotServe if Triton or vLLM is not installed; neither is imported."""
    has_server = CONTAINER_SERVER.exists() or importlib.util.find_spec("pytriton") is not None
    if not has_server or importlib.util.find_spec("vllm") is None:
        raise CannotServe(
            f"no server listens on port {port + 1}, and none can be started here: the extra "
            "'embedded' is not installed; name another server with --server HOST:PORT"
        )


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def log_line(message: str) -> None:
    """Print a progress line to standard error; standard output is reserved for the command's result."""
    print(message, file=sys.stderr, flush=True)
