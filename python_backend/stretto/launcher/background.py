"""Background server on this machine: its pid file, and its start on demand.

If the process that starts a server ends before the server is ready, the launcher ends as well. An interrupted command
therefore leaves no server behind.
"""

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
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stretto.errors import CheckpointError
from stretto.launcher.config import default_pid_file, default_port
from stretto.launcher.installation import CONTAINER_SERVER, LaunchError, state_folder
from stretto.launcher.options import ServedModel, served_model
from stretto.launcher.processes import birth, read_process
from stretto.machine.worker_process import end_after_parent, outlive_parent
from stretto.untrusted_files import json_object

STOP_SECONDS = 60.0  # for records that lack the value
STATES = ("starting", "ready", "unready", "waiting", "asleep", "draining")


def write(
    path: Path | None,
    state: str,
    ports: dict[str, int],
    log: str,
    reason: str = "",
    stop_seconds: float = STOP_SECONDS,
    serves: bool = False,
    model: ServedModel | None = None,
) -> None:
    """Replace the pid file atomically; do nothing if `path` is None.

    Args:
        reason: Why the server is not ready; empty if nothing is wrong.
        stop_seconds: Maximum time that stopping the launcher takes.
        serves: True if the server answers gRPC requests although the state is not `ready`: only the gateway is not
            ready, or the server is asleep.
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
    if model is not None:
        record["model"] = asdict(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(json.dumps(record) + "\n")
    scratch.replace(path)


def read(path: Path) -> dict[str, Any] | None:
    """Return the pid file's record, or None if the file is damaged or its launcher is not running."""
    try:
        record = json_object(path)
    except CheckpointError:
        return None
    return record if _is_record(record) and _is_alive(record) else None


def _is_record(record: dict[str, Any]) -> bool:
    numbers = [record.get("pid"), record.get("stop_seconds", STOP_SECONDS)]
    ports = record.get("ports")
    return (
        all(type(number) in (int, float) for number in numbers)
        and record.get("state") in STATES
        and isinstance(ports, dict)
        and all(type(port) is int for port in ports.values())
    )


def _is_alive(record: dict[str, Any]) -> bool:
    """Return True if the process that wrote the record still runs, and none has reused its pid."""
    return read_process(record["pid"]) is not None and birth(record["pid"]) == record.get("born")


def model_of(record: dict[str, Any]) -> ServedModel | None:
    """Return the model in a pid file's record; None if a launcher of an earlier version wrote it."""
    model = record.get("model")
    if not isinstance(model, dict) or not all(isinstance(model.get(name), str) for name in ("name", "key")):
        return None
    others = {name: str(model.get(name, "")) for name in ("repository", "revision", "configuration")}
    return ServedModel(model["name"], model["key"], **others)


def remove(path: Path | None) -> None:
    """Remove the pid file if this process wrote it."""
    record = None if path is None else read(path)
    if path is not None and record is not None and record["pid"] == os.getpid():
        path.unlink(missing_ok=True)


def stop(path: Path) -> bool:
    """Send SIGTERM to the launcher, and wait until it has drained and exited; return False if none was running.

    If it takes longer than the `stop_seconds` in its record, raise TimeoutError.
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
CHANGING = ("starting", "draining")  # states in which another process starts or stops a server
STARTER = "STRETTO_STARTER"  # environment variable of a launcher: pid of the process that waits for its start


def end_with_starter() -> None:
    """Make this launcher end if the process that started it in the background ends before the server is ready.

    The launcher gets SIGTERM, so its handlers must be installed. A launcher that a user has started is not affected.
    """
    if STARTER in os.environ:
        end_after_parent(int(os.environ[STARTER]))


def outlive_starter() -> None:
    """Keep this launcher running after the process that started it ends, because its server is ready."""
    if os.environ.pop(STARTER, None) is not None:
        outlive_parent()


class CannotServe(LaunchError):
    """No server is running, and a component that is required to start one is not installed."""


def ready_server() -> str:
    """Return the gRPC address of this machine's server once it is ready; start the server if none is running."""
    server = BackgroundServer(default_port(), state_folder())
    try:
        server.ensure_ready()
    except CannotServe as error:
        raise CannotServe(f"{error}; name another server with --server HOST:PORT") from None
    if (page := server.page()) is not None:
        log_line(f"web page: {page}")
    return server.address


@dataclass(frozen=True, slots=True)
class BackgroundServer:
    """Server that listens on consecutive ports and is found through its pid file.

    Attributes:
        port: HTTP port; gRPC, metrics and the gateway use the next three.
        repository: Model repository. None for the bundled one; a running server of any model is then used.
        has_gateway: True to start the gateway, too. A running server is used also without one.
    """

    port: int
    folder: Path
    launcher: tuple[str, ...] = LAUNCHER
    repository: Path | None = None
    has_gateway: bool = False
    arguments: tuple[str, ...] = ()

    def ensure_ready(self) -> None:
        """Wait until the server is ready; start it if it is not running and no other process is starting it.

        Raises:
            CannotServe: A required component is not installed.
            LaunchError: The server did not start, or another model's server uses the port.
        """
        if self._is_usable():
            return
        if self.launcher is LAUNCHER:
            try:
                require_installation()
            except CannotServe as error:
                raise CannotServe(f"no server listens on port {self.port + 1}, and {error}") from None
        try:
            with self._start_lock():
                self._start()
        except OSError as error:
            reason = f"{error.filename or self.folder}: {error.strerror or error}"
            raise LaunchError(f"the server could not be started: {reason}") from None

    @property
    def address(self) -> str:
        return f"localhost:{self.port + 1}"

    def is_running(self) -> bool:
        """Return True if a server runs, ready or not, after its start or stop; raise LaunchError as `check_model`."""
        self.check_model()
        is_waiting = False
        while (record := self.record()) is not None and not self._serves(record) and record["state"] in CHANGING:
            if not is_waiting:
                log_line(f"another process starts or stops the server on port {self.port}; waiting for it")
                is_waiting = True
            time.sleep(POLL_S)
        if record is not None and not self._serves(record):
            log_line(f"the server on port {self.port} is not ready: {record.get('reason') or record['state']}")
        return record is not None

    def page(self) -> str | None:
        """Return the URL of the gateway's web page, or None if the launcher runs no gateway."""
        record = self.record()
        port = None if record is None else record["ports"].get("gateway")
        return None if port is None else f"http://localhost:{port}/"

    def record(self) -> dict[str, Any] | None:
        """Return the pid file's record, or None if no launcher runs."""
        return read(default_pid_file(self.port, self.folder))

    def check_model(self) -> None:
        """Raise LaunchError if a server of another model than `repository`, or another program, uses the port."""
        if self.repository is None:
            return
        record = self.record()
        if record is None:
            if _listens(self.port + 1):
                raise LaunchError(f"port {self.port + 1} is in use by another program: choose others with --port")
            return
        served = model_of(record)
        if served != served_model(self.repository):
            name = "another model" if served is None else served.name
            which = "" if self.port == default_port() else f" --http-port {self.port}"
            raise LaunchError(f"port {self.port} serves {name}: stretto serve --stop{which}, or --port")

    def _is_usable(self) -> bool:
        """Return True if there is a usable server.

        A server is usable if its launcher reports it as ready, apart from the gateway. A server without a launcher (for
        example in a container) is usable if it listens on the gRPC port, unless a model repository is given.
        """
        self.check_model()
        record = self.record()
        if record is None:
            return self.repository is None and _listens(self.port + 1)
        return self._serves(record)

    @staticmethod
    def _serves(record: dict[str, Any]) -> bool:
        return record["state"] == "ready" or record.get("serves") is True

    def _state(self) -> str | None:
        record = self.record()
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

    def launcher_arguments(self) -> list[str]:
        http, grpc, metrics, gateway = range(self.port, self.port + 4)
        words = ["--http-port", http, "--grpc-port", grpc, "--metrics-port", metrics]
        words += ["--pid-file", default_pid_file(self.port, self.folder), "--log-file", self._log_file]
        words += ["--gateway", "--gateway-port", gateway] if self.has_gateway else []
        words += [] if self.repository is None else ["--model-repository", self.repository]
        return [str(word) for word in (*words, *self.arguments)]

    def _launch(self) -> "subprocess.Popen[bytes]":
        """Start the launcher in its own session, so that it does not receive signals meant for this process."""
        http, grpc, metrics, gateway = range(self.port, self.port + 4)
        log = self._log_file
        named = f"{http} (HTTP), {grpc} (gRPC), {metrics} (metrics)" + f", {gateway} (gateway)" * self.has_gateway
        log_line(f"starting the server on ports {named}; log: {log}")
        command = [*self.launcher, *self.launcher_arguments()]
        # Without bytecode, every start takes 5 s longer.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment[STARTER] = str(os.getpid())
        with self._output_file.open("wb") as output:
            return subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )

    @property
    def _log_file(self) -> Path:
        return self.folder / f"server-{self.port}.log"

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


def require_installation() -> None:
    """Raise CannotServe if Triton or vLLM is not installed; neither is imported."""
    has_server = CONTAINER_SERVER.exists() or importlib.util.find_spec("pytriton") is not None
    if not has_server or importlib.util.find_spec("vllm") is None:
        raise CannotServe("no server can be started here: the extra 'embedded' is not installed")


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def log_line(message: str) -> None:
    """Print a progress line to standard error, because standard output is reserved for the command's result."""
    print(message, file=sys.stderr, flush=True)
