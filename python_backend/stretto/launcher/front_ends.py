"""Processes that outlive restarts of the server: the proxy, the gateway, and the spare processes."""

import importlib.util
import ipaddress
import os
import secrets
import select
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from stretto.launcher.config import PORT_STEP, LaunchConfig
from stretto.launcher.installation import (
    KEEP_LARGE,
    MALLOC,
    Installation,
    LaunchError,
    server_environment,
    state_folder,
)
from stretto.launcher.launch import Launch
from stretto.launcher.launch_log import LaunchLog, log_line
from stretto.launcher.pulse import Pulse
from stretto.launcher.timeouts import slowness
from stretto.machine.spare_process import ForkedProcess, fork, listen
from stretto.machine.worker_process import GATEWAY_SPARE_NAME, die_with_parent
from stretto.proxy.apis import HTTP
from stretto.proxy.messages import (
    ASLEEP,
    ENDING_ALL,
    ENDING_UNANSWERED,
    IDLE,
    READY,
    STOPPING,
    UNREADY,
    WAKE,
    WAKE_FAILED,
    Ports,
    ProxyConfig,
)

START_S = 60.0  # timeout of the first start, which takes a second on an idle machine
STOP_S = 5.0


WAVEFORM = 'output_map { key: "pcm" value: "waveform" }'  # in `stretto.convert.make_repository.CLONING` only


def cloning_models(repository: Path) -> tuple[str, ...]:
    """Return the names of a model repository's ensembles for clients that clone voices."""
    configs = sorted(repository.glob("*/config.pbtxt"))
    return tuple(path.parent.name for path in configs if WAVEFORM in path.read_text(errors="replace"))


class ProxyProcess:
    """Proxy process, restarted on the same ports if it exits or hangs.

    It exits when its standard input is closed, and therefore when the launcher exits.
    """

    def __init__(self, config: LaunchConfig, launch: Launch, log: LaunchLog) -> None:
        self._log = log
        self._pulse = Pulse("proxy")
        self._config = ProxyConfig(
            address=config.address,
            grpc_port=config.grpc_port,
            metrics_port=config.metrics_port,
            http_port=None if HTTP in config.allowed else config.http_port,
            triton_grpc=str(launch.grpc_socket),
            triton_metrics=str(launch.metrics_socket),
            disconnects=str(launch.disconnects_file),
            key=secrets.token_urlsafe(),
            allowed=tuple(sorted(config.allowed)),
            max_request_bytes=config.max_request_bytes,
            cleanup=(sys.executable, "-P", "-m", "stretto.launcher.launch", str(os.getpid())),
            cloning_models=cloning_models(config.model_repository),
            idle_s=config.idle_s,
        )
        self._state = UNREADY
        self._reports: set[str] = set()  # reports of the running process: IDLE, WAKE and names of models
        self._start()
        self._listen()
        write_key(launch, self._config.grpc_port, self._config.key)

    def report_ready(self, is_ready: bool) -> None:
        """Report to the proxy whether the server is ready; the proxy also asks Triton itself."""
        self._send_state(READY if is_ready else UNREADY)

    def report_asleep(self) -> None:
        """Report to the proxy that Triton is being stopped until a request wakes the server."""
        self._reports.discard(IDLE)
        self._send_state(ASLEEP)

    def report_failed_wake(self) -> None:
        """Make the proxy refuse the requests that wait, because Triton could not be started."""
        self._send_state(WAKE_FAILED)

    def close_gate(self, spares_answered: bool) -> None:
        """Make the proxy end requests in flight, and refuse new ones until the server is reported as ready.

        With `spares_answered`, requests that have received a first response may continue.
        """
        self._send_state(ENDING_UNANSWERED if spares_answered else ENDING_ALL)

    def _send_state(self, state: str) -> None:
        if state != self._state:
            self._state = state
            self._send(state)

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        if self._process.stdin.closed:  # a restart failed; the next one sends the state
            return
        with suppress(BrokenPipeError):  # the proxy has ended; its restart sends the state
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()

    def _start(self) -> None:
        environment = MALLOC | os.environ | self._pulse.prepare()
        self._process, _ = self._log.start(
            [sys.executable, "-P", "-m", "stretto.proxy"],
            env=environment,
            pass_fds=self._pulse.inherited,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )
        self._pulse.begin(self._process.pid)
        self._has_sent_ports = False
        self._reports.clear()
        self._send(self._config.to_json())
        self._send(self._state)

    def _listen(self) -> None:
        """Wait until the proxy first listens; raise LaunchError if it fails or takes too long."""
        limit_s = START_S * slowness()
        if not self._has_written(limit_s):
            self._kill()
            raise LaunchError(f"the proxy did not listen within {limit_s:.0f} s; see the log")
        output = "".join(self._lines())
        self._has_sent_ports = True
        try:
            self.ports = Ports.from_json(output)
        except ValueError:
            self.stop()
            raise LaunchError(output or "the proxy exited at start-up; see the log") from None
        grpc = self.ports.grpc
        metrics = self.ports.metrics
        http = self.ports.http
        self._config = replace(self._config, grpc_port=grpc, metrics_port=metrics, http_port=http)

    def unhealthy_model(self) -> str | None:
        """Return the name of a model that Triton has newly reported as unhealthy, or None."""
        self._read_reports()
        models = self._reports - {IDLE, WAKE}
        self._reports -= models
        return min(models, default=None)

    def is_idle(self) -> bool:
        """Return True if the proxy has reported that the server is idle; requests wait until it has slept."""
        self._read_reports()
        return IDLE in self._reports

    def has_woken(self) -> bool:
        """Return True, once, if a request needs the sleeping server."""
        self._read_reports()
        is_needed = WAKE in self._reports
        self._reports.discard(WAKE)
        return is_needed

    def _read_reports(self) -> None:
        lines = self._lines() if self._has_written(0.0) else []
        if lines and not self._has_sent_ports:  # ports of a restarted proxy, or its last error
            self._has_sent_ports = True
            del lines[0]
        self._reports.update(lines)

    def _has_written(self, wait_s: float) -> bool:
        """Return True once the proxy has written a line or exited; False after `wait_s`."""
        output = self._process.stdout
        assert output is not None
        # closed if the proxy has ended and its restart failed
        return not output.closed and bool(select.select([output], [], [], wait_s)[0])

    def _lines(self) -> list[str]:
        """Return the lines that the proxy has written since the last call; it writes each line in a single call."""
        assert self._process.stdout is not None
        return os.read(self._process.stdout.fileno(), select.PIPE_BUF).decode().splitlines()

    def keep_alive(self) -> None:
        """Restart the proxy if it has exited or hangs, without waiting for it; the next call retries if that fails."""
        if self._process.poll() is None and self._pulse.is_hung():
            self._kill()
        if self._process.poll() is not None:
            with suppress(OSError):  # process creation failed
                self._start()

    def _kill(self) -> None:
        self._process.kill()
        self._process.communicate()

    def fault(self) -> str:
        """Return a description of the proxy's fault; empty if there is none."""
        return self._pulse.fault()

    def stop(self) -> None:
        """Ask the proxy to complete its responses and exit; kill it after STOP_S."""
        self._send(STOPPING)
        try:
            self._process.communicate(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            self._kill()
        self._pulse.close()


def write_key(launch: Launch, grpc_port: int, key: str) -> None:
    """Write the access key to the runtime directory, where clients of the same user find it by the gRPC port."""
    descriptor = os.open(launch.folder / f"key-{grpc_port}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(key)


class SpareProcess:
    """Spare process (`stretto.machine.spare_process`), so that a restarted process need not import its modules again.

    It is restarted if it exits. Meanwhile, its clients start their processes themselves.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], path: Path, log: LaunchLog, num_words: int = 0
    ) -> None:
        """Start the process; the last `num_words` words of `command` follow the descriptor of the socket."""
        self._command = list(command)
        self._num_words = num_words
        self._environment = dict(environment)
        self._path = path
        self._log = log
        self._forked: ForkedProcess | None = None
        self._start()

    def _start(self) -> None:
        self._started = time.monotonic()
        self._path.unlink(missing_ok=True)
        end = len(self._command) - self._num_words
        with listen(self._path) as listener:
            descriptor = listener.fileno()
            self._process, _ = self._log.start(
                [*self._command[:end], str(descriptor), *self._command[end:]],
                env=self._environment,
                pass_fds=[descriptor],
                stdin=subprocess.DEVNULL,
                preexec_fn=die_with_parent,
            )

    def start(self, command: Sequence[str], **options: Any) -> "ForkedProcess | subprocess.Popen[Any]":
        """Fork a process that ends with the spare, or start one without the spare.

        The spare is not used if it is not running, or if the last process has ended before it was forked.

        Args:
            command: Command line of a Python module: interpreter, `-P`, `-m`, module and arguments.
            options: Keyword arguments of Popen: `stdout`, `stderr`, `env` and `pass_fds`; others have no effect on a
                forked process.
        """
        is_broken = self._forked is not None and not self._forked.pid
        self._forked = None
        if not is_broken:
            streams = {1: options["stdout"], 2: options["stderr"]}
            descriptors = streams | {number: number for number in options["pass_fds"]}
            _, _, _, module, *arguments = command
            self._forked = fork(self._path, module, arguments, options["env"], descriptors, dies_with_spare=True)
        return self._forked or subprocess.Popen(command, **options)

    def keep_alive(self) -> None:
        if self._process.poll() is not None and time.monotonic() - self._started > RESTART_S:
            with suppress(OSError):  # process creation failed; the next call retries
                self._start()

    def stop(self) -> None:
        """Kill the process. A gateway that it has forked ends with it; engine hosts end only with their models."""
        self._process.kill()
        self._process.wait()


def engine_spare(installation: Installation, launch: Launch, log: LaunchLog) -> SpareProcess:
    """Start the spare process that has imported vLLM and forks engine hosts."""
    environment = server_environment(installation, launch) | KEEP_LARGE
    return SpareProcess(ENGINE_SPARE_COMMAND, environment, launch.spare_socket, log)


def gateway_spare(launch: Launch, log: LaunchLog) -> SpareProcess:
    """Start the spare process that forks gateways."""
    modules = GATEWAY_MODULES
    command = [sys.executable, "-P", "-m", "stretto.machine.spare_process", GATEWAY_SPARE_NAME, *modules]
    # Without SPT_NOENV, a process title may overwrite the environment in /proc.
    environment = {**os.environ, "SPT_NOENV": "1"}
    return SpareProcess(command, environment, launch.gateway_spare_socket, log, num_words=len(modules))


ENGINE_SPARE_COMMAND: tuple[str, ...] = (sys.executable, "-P", "-m", "stretto.engine.host", "spare")
MODULE = "stretto_gateway"  # a separate program: run, not imported
GATEWAY_MODULES = (f"{MODULE}.command", "uvloop")  # imported before a gateway is forked
NEEDED = (MODULE, "fastapi", "uvicorn", "av", "multipart", "prometheus_client")
# Environment variables of the gateway: folders of voices and of jobs, and file of the end-of-turn model.
VOICES = "STRETTO_VOICES"
JOBS = "STRETTO_JOBS"
TURN_MODEL = "STRETTO_TURN_MODEL"
RESTART_S = 5.0  # minimum time between starts
BAD_USAGE = 2  # the gateway's exit status for invalid arguments, or for an invalid file named by one


def kept_folder(name: str, variable: str) -> tuple[str, ...]:
    """Return the flag `--voices` or `--jobs` for a persistent folder of the gateway.

    The result is empty if the user has set the environment variable, or if the folder cannot be created.
    """
    if os.environ.get(variable):
        return ()
    folder = state_folder() / name
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        log_line(
            f"{name} cannot be stored: cannot create {folder} ({error.strerror}); set another folder with {variable}"
        )
        return ()
    return (f"--{name}", str(folder))


class GatewayProcess:
    """Gateway process, restarted if it ends or hangs."""

    def __init__(self, config: LaunchConfig, port: int, launch: Launch, log: LaunchLog) -> None:
        missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
        if missing:
            raise LaunchError(f"--gateway: no module {missing[0]!r}; install the extra 'gateway' of this package")
        self._config = config
        self._port = port
        self._log = log
        self._pulse = Pulse("gateway")
        self._has_worked = False
        named = {name: os.environ[name] for name in (VOICES, JOBS, TURN_MODEL) if os.environ.get(name)}
        self._paths = {name: os.path.abspath(os.path.expanduser(path)) for name, path in named.items()}
        self._spare = gateway_spare(launch, log)
        self._start()

    def command_line(self) -> list[str]:
        """Return the gateway's command line, with the proxy as its server and the user's arguments last."""
        is_any = ipaddress.ip_address(self._config.address).is_unspecified
        host = "localhost" if is_any else self._config.address
        ports = [self._config.grpc_port + number * PORT_STEP for number in range(max(1, len(self._config.shares)))]
        server, *others = [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for port in ports]
        replicas = [word for address in (server, *others) for word in ("--replica", address)] if others else []
        flags = ("--address", self._config.address, "--port", str(self._port))
        drain = ("--drain-seconds", str(self._config.drain_seconds))
        # a request may wait until a server that sleeps has started
        wait = ("--first-seconds", str(max(1.0, self._config.start_seconds))) if self._config.idle_s else ()
        own_flags = (*flags, *drain, *wait, *kept_folder("voices", VOICES), *kept_folder("jobs", JOBS))
        servers = ("--server", server, *replicas)
        return [sys.executable, "-P", "-m", MODULE, *servers, *own_flags, *self._config.gateway_args]

    def _start(self) -> None:
        self._started = time.monotonic()
        environment = os.environ | self._paths | self._pulse.prepare()
        self._process, self._output = self._log.start(
            self.command_line(),
            starter=self._spare.start,
            env=environment,
            pass_fds=self._pulse.inherited,
            stdin=subprocess.DEVNULL,
            preexec_fn=die_with_parent,
        )
        self._pulse.begin(self._process.pid)

    def keep_alive(self) -> None:
        """Restart an ended or hung gateway; raise LaunchError if one that has never worked rejects its arguments."""
        self._spare.keep_alive()
        self._pulse.pid = self._process.pid
        self._has_worked = self._has_worked or self._pulse.has_beaten
        if self._process.poll() == BAD_USAGE and not self._has_worked:
            raise LaunchError(self._output.tail().strip().rpartition("\n")[2])
        if self._process.poll() is None and self._pulse.is_hung():
            self._process.kill()
            self._process.wait()
        if self._process.poll() is not None and time.monotonic() - self._started > RESTART_S:
            with suppress(OSError):  # process creation failed; the next call retries
                self._start()

    def fault(self) -> str:
        """Return a description of the gateway's fault; empty if there is none."""
        return "the gateway has ended" if self._process.poll() is not None else self._pulse.fault()

    def unready(self) -> str:
        """Return why the gateway cannot answer requests; empty if it can."""
        if self._pulse.is_ready or self.fault():
            return self.fault()
        if not self._process.pid:  # the process has not been forked
            return "the gateway is being started"
        return f"the gateway (pid {self._process.pid}) is not ready: no server at its --server accepts requests"

    def drain(self, polls: Iterable[None]) -> None:
        """Ask the gateway to complete its responses and exit; wait until it exits or `polls` ends."""
        self._pulse.forget_listener()
        self._process.terminate()
        for _ in polls:
            if self._process.poll() is not None:
                break

    def stop(self) -> None:
        """Terminate the gateway; kill it after STOP_S."""
        self._pulse.forget_listener()
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._spare.stop()
        self._pulse.close()
