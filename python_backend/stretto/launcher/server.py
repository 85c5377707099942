"""One tritonserver process: start, readiness, monitoring, restart of single models, and shutdown."""

import http.client
import json
import os
import re
import secrets
import select
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from stretto.launcher import mps
from stretto.launcher.config import LaunchConfig
from stretto.launcher.faults import Fault, named
from stretto.launcher.first_request import FirstRequest, first_requests, model_profile
from stretto.launcher.installation import (
    IMPORT_ROOT,
    Installation,
    LaunchError,
    UnixConnection,
    reachable,
    server_environment,
    state_folder,
)
from stretto.launcher.launch import Launch
from stretto.launcher.launch_log import LaunchLog, log_line
from stretto.launcher.options import weights_digest
from stretto.launcher.processes import (
    GENTLE_RAISE,
    RAISE,
    LoadPriority,
    ProcessSnapshot,
    Watch,
    descendants,
    end_all,
    lost_children,
)
from stretto.launcher.timeouts import slowness
from stretto.launcher.workarounds import StartHangWatch, Workarounds
from stretto.machine.numerics import numeric_class
from stretto.machine.worker_process import die_with_parent
from stretto.proxy.apis import CLOSED_APIS, HTTP, REPOSITORY
from stretto.triton_io.stub import ENCODINGS, MARKER, PRONUNCIATIONS

FIRST_STEPS = {"preprocessor"}  # not needed once a request has received a response
Connect = Callable[[], http.client.HTTPConnection]


def encodings_environment(config: LaunchConfig) -> dict[str, str]:
    """Return the environment variable for the folder that keeps encodings of stored voices across restarts.

    The result is empty if there is no gateway (which stores voices), and the user has not set the variable.
    """
    if os.environ.get(ENCODINGS):
        return {ENCODINGS: str(Path(os.environ[ENCODINGS]).absolute())}
    if config.gateway_port is None or ENCODINGS in os.environ:
        return {}
    return {ENCODINGS: str(state_folder() / "encodings")}


class ModelRestart:
    """Restarts some models of a running server without blocking the caller.

    All of them are unloaded before any is loaded again.
    """

    def __init__(self, models: Sequence[str], connect: Connect) -> None:
        self.models = tuple(models)
        self._connect = connect
        actions = [(action, model) for action in ("unload", "load") for model in models]
        self._steps = deque(f"models/{model}/{action}" for action, model in actions)
        self._steps.append("index")
        self._call: http.client.HTTPConnection | None = None
        self._step = ""

    @property
    def spares_answered(self) -> bool:
        """True if streams that have received a first response can continue without these models."""
        return set(self.models) <= FIRST_STEPS

    def is_done(self) -> bool:
        """Advance as far as possible without waiting; return True once all models are ready.

        If Triton refuses a step, or a model is not ready at the end, raise LaunchError.
        """
        while self._call is not None or self._steps:
            if self._call is None:
                self._step = self._steps.popleft()
                self._call = self._connect()
                self._call.request("POST", f"/v2/repository/{self._step}", "{}")
            if not select.select([self._call.sock], [], [], 0)[0]:
                return False
            answer = self._call.getresponse()
            body = answer.read()
            self.close()
            self._check(answer.status, body)
        return True

    def close(self) -> None:
        if self._call is not None:
            self._call.close()
            self._call = None

    def _check(self, status: int, body: bytes) -> None:
        if status != http.HTTPStatus.OK:
            raise LaunchError(f"{self._step}: {body.decode(errors='replace')[:500]}")
        if self._step == "index":
            models: list[dict[str, Any]] = json.loads(body)
            missing = [f"{model['name']} is {model.get('state')}" for model in models if model.get("state") != "READY"]
            if missing:
                raise LaunchError(", ".join(missing))


# More than 64 streams need. WORKAROUND(triton python_backend, unproved): a stub may crash while its region grows.
REGION_BYTES = 16 << 20
MAX_MODEL_RESTARTS = 8  # per server process: see `restart_models`
BAD_USAGE = re.compile(r"tritonserver: (unrecognized )?option '")  # followed by pages of usage text
HARMLESS = re.compile(r"[IW]\d{4} ")  # Triton's information and warning lines, such as "DCGM unable to start"
TRANSIENT = ("lock_exception", "Timed out occurred while waiting for the stub", "Stub process")


class AbortedStart(Exception):
    """The server died while starting, for a reason that may not recur."""


def command_line(config: LaunchConfig, installation: Installation, launch: Launch) -> list[str]:
    """Return the server's command line; the user's flags come last and take precedence.

    Auto-completion of model configs is off, because ours do not need it and each stub would be started twice. The
    allocation pool is off, because Triton would keep the last request of each ended stream, with its content, for
    reuse.
    """
    return [
        str(installation.executable),
        f"--model-repository={config.model_repository}",
        *listening(config, launch),
        *loading(config),
        f"--id={identity(config)}",
        "--disable-auto-complete-config",
        "--exit-timeout-secs=10",
        "--grpc-infer-allocation-pool-size=0",
        "--backend-config=python,thread-pool-size=32",
        f"--backend-config=python,shm-region-prefix-name={launch.region_prefix}",
        f"--backend-config=python,shm-default-byte-size={REGION_BYTES}",
        f"--backend-config=python,shm-growth-byte-size={REGION_BYTES}",
        *installation.arguments,
        *config.passed,
    ]


def identity(config: LaunchConfig) -> str:
    """Return the server's name in its metadata, as JSON: model, revision, digests of files, and numeric class."""
    model = config.model
    repository = config.model_repository
    name = model.name if model.key else model_profile(repository).get("family", repository.name)
    record = {"model": name, "revision": model.revision, "configuration": model.configuration}
    record["weights"] = weights_digest(repository)
    record["numerics"] = numeric_class()
    return json.dumps({name: value for name, value in record.items() if value})


def loading(config: LaunchConfig) -> list[str]:
    """Return the flags that load all models and permit the launcher to reload single ones.

    The result is empty if the user passes flags for model control, or if other users could then load models, whose code
    Triton would execute. They could if the repository API is open to all. They also could if Triton's own HTTP service
    is open, because all users of this host can read its key in `ps`.
    """
    has_flags = any(flag.startswith(("--model-control-mode", "--load-model")) for flag in config.passed)
    return (
        [] if has_flags or config.allowed & {REPOSITORY, HTTP} else ["--model-control-mode=explicit", "--load-model=*"]
    )


def listening(config: LaunchConfig, launch: Launch) -> list[str]:
    """Return the flags for Triton's addresses: Unix sockets that only this user can access.

    If Triton's HTTP service is open, its restricted APIs require a random key that is not published. Other users of
    this host can read it in `ps`.
    """
    flags = [f"--http-address=unix:{launch.http_socket}"]
    if HTTP in config.allowed:
        closed = ",".join(api for api in CLOSED_APIS if api not in config.allowed)
        address = f"ipv6:{config.address}" if ":" in config.address else config.address  # libevhtp's form
        flags = [f"--http-address={address}"]
        flags += [f"--http-restricted-api={closed}:stretto-key={secrets.token_urlsafe()}"] if closed else []
    return [
        *flags,
        f"--http-port={config.http_port}",
        f"--grpc-address=unix:{launch.grpc_socket}",
        f"--grpc-port={config.grpc_port}",
        f"--metrics-address=unix:{launch.metrics_socket}",
        f"--metrics-port={config.metrics_port}",
    ]


def import_directory(installation: Installation) -> dict[str, Any]:
    """Return an argument of Popen: the current folder in which stubs find our package, unless any folder works.

    WORKAROUND(triton): the stubs decode module paths as ASCII and ignore PYTHONPATH.
    """
    return {} if installation.imports == IMPORT_ROOT else {"cwd": installation.imports}


class TritonServer:
    """A tritonserver process, in its own process group, so that Ctrl-C reaches only the launcher."""

    def __init__(
        self,
        config: LaunchConfig,
        installation: Installation,
        launch: Launch,
        log: LaunchLog,
        was_ready_before: bool = False,
    ) -> None:
        """Start the server; load its models with raised priority if an earlier server was ready."""
        self._config = config
        self._launch = launch
        self._started = time.monotonic()
        self._workarounds = Workarounds(installation.version)
        self._watch: Watch | None = None
        self._restart: ModelRestart | None = None
        self._first: FirstRequest | None = None
        self._num_restarts = 0
        self._long_lost: set[int] = set()  # Triton reaps these only after the model's last request, if at all
        self._process, self._output = log.start(
            command_line(config, installation, launch),
            env=server_environment(installation, launch)
            | mps.client_environment(launch)
            | encodings_environment(config)
            | ({MARKER: config.marker} if config.marker else {})
            | ({PRONUNCIATIONS: str(config.pronunciations)} if config.pronunciations else {}),
            preexec_fn=die_with_parent,
            **import_directory(installation),
        )
        self._fault_watches = self._workarounds.watches(self.pid)
        self._start_watch: StartHangWatch | None = self._workarounds.start_watch(self.pid)
        self._priority = LoadPriority(self._process.pid, is_new_server=True) if was_ready_before else None
        if self._priority is not None:
            self._priority.poll()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def age_s(self) -> float:
        """Time since the start of the server, or since the latest restart of some of its models."""
        return time.monotonic() - self._started

    def is_ready(self) -> bool:
        """Return True once every model is loaded and the first request has passed all of them.

        From then on, the server's processes are watched.

        Raises:
            AbortedStart: The server or a stub died, or the start hangs. Another attempt may succeed.
            LaunchError: The server has ended with an error, or the time limit has passed.
        """
        code = self._process.poll()
        if code is not None:
            reason = last_error(self._output.tail())
            if code < 0 or any(sign in reason for sign in TRANSIENT):
                raise AbortedStart(f"the server ended with {_exit(code)}: {reason}")
            raise LaunchError(f"the server ended with {_exit(code)}: {reason}")
        if self.age_s > self._config.start_seconds * slowness():
            raise LaunchError(f"the server is not ready after {self.age_s:.0f} s")
        if self._watch is not None:
            return self._has_replied(self._watch)
        if self._answers_ready() if self._restart is None else self._restart.is_done():
            if self._priority is not None:
                self._priority.end()
                self._priority = None
            self._watch = self._watch_processes()
            self._launch.hide_regions()  # before the first request: clients may send others already
            requests = first_requests(self._config.model_repository)
            self._first = FirstRequest(requests, self._connection) if requests else None
            return self._has_replied(self._watch)
        if self._priority is not None:
            self._priority.poll()
        if self._start_watch is not None and (hang := self._start_watch.hang()):
            raise AbortedStart(f"the server has {hang}")
        return False

    def _has_replied(self, watch: Watch) -> bool:
        """Return True once the first request is complete, or if there is none because the model has no profile."""
        if self._first is not None:
            if ended := watch.wait(0):
                raise AbortedStart(f"{named(ended)} ended at the first request")
            if not self._first.is_done():
                return False
            log_line(self._first.outcome())
            self._first = None
        return True

    def _answers_ready(self) -> bool:
        with suppress(OSError, http.client.HTTPException):
            connection = self._connection()
            try:
                connection.request("GET", "/v2/health/ready")
                return connection.getresponse().status == 200
            finally:
                connection.close()
        return False

    def _connection(self) -> http.client.HTTPConnection:
        if HTTP in self._config.allowed:
            return http.client.HTTPConnection(reachable(self._config.address), self._config.http_port, timeout=2)
        return UnixConnection(self._launch.http_socket)

    def _watch_processes(self) -> Watch:
        """Return a watcher for the server and the processes that it cannot work without."""
        me = ProcessSnapshot(self.pid, os.getpid(), self.pid, "tritonserver", "")
        watch = Watch([me, *(process for process in descendants(self.pid) if process.is_worker)])
        if lost_children(self.pid) - self._long_lost:
            watch.close()
            raise AbortedStart("a stub ended as soon as its model was loaded")
        return watch

    def wait(self, timeout_s: float) -> Fault | None:
        """Wait up to `timeout_s` until a process ends or Triton has a known fault; return the fault, or None."""
        assert self._watch is not None, "the server is not ready yet"
        ended = self._watch.wait(timeout_s)
        if ended:
            return Fault(ended, "ended")
        return next((fault for watch in self._fault_watches if (fault := watch.fault())), None)

    def dead_stub(self, model: str | None) -> Fault | None:
        """Return a fault for the stub of `model`, which Triton considers dead; None if there is no such stub."""
        assert self._watch is not None, "the server is not ready yet"
        stubs = [] if model is None else self._watch.stubs_of(model)
        return Fault(stubs, "is considered dead by Triton") if stubs else None

    def stopped(self) -> list[ProcessSnapshot]:
        """Return the processes of the ready server that a signal has stopped."""
        assert self._watch is not None, "the server is not ready yet"
        return self._watch.stopped()

    def restart_models(self, broken: list[ProcessSnapshot]) -> ModelRestart | None:
        """Begin to restart only the models of processes that have exited or are stopped.

        `is_ready` advances the restart. The result is None if the whole server must be restarted.

        WORKAROUND(triton python_backend, unproved): a model whose stub died during requests is never freed, because
        these requests never end. Its 35 threads and its shared memory remain, so only MAX_MODEL_RESTARTS are made.
        """
        assert self._watch is not None, "the server is not ready yet"
        models = self._watch.models_of(broken)
        if not models or not loading(self._config) or self._num_restarts == MAX_MODEL_RESTARTS:
            return None
        self._num_restarts += 1
        self._watch.end_models(models)
        self._workarounds.free_locks(self._launch.regions())
        self._watch.close()
        self._long_lost = lost_children(self.pid)
        self._watch = None
        self._start_watch = self._workarounds.start_watch(self.pid)
        self._output.forget()
        self._started = time.monotonic()
        self._restart = ModelRestart(sorted(models), self._connection)
        # Streams that continue must keep most of the processor.
        raise_by = GENTLE_RAISE if self._restart.spares_answered else RAISE
        self._priority = LoadPriority(self.pid, raise_by=raise_by)
        return self._restart

    def terminate(self) -> None:
        """Ask the server to exit, which takes at most the exit timeout on its command line."""
        self._process.terminate()

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def kill(self) -> None:
        """Kill the server and its process group, and wait for them to exit."""
        self._process.kill()
        self._process.wait()
        end_all(lambda process: process.group == self.pid)
        if self._first is not None:
            self._first.close()
        if self._watch is not None:
            self._watch.close()
        self._output.close()


def last_error(output: str) -> str:
    """Return the line of a server's output that best explains why it ended.

    The server's uncaught exception precedes other errors, because stubs that lose their server also log errors.
    """
    lines = [line for line in output.splitlines() if not HARMLESS.match(line)]
    best = [line[match.start() :] for line in lines if (match := BAD_USAGE.search(line))]
    best = best or [line for line in lines if "failed to load '" in line and "depend" not in line]
    best = best or [line for line in lines if line.lstrip().startswith("what(): ")]
    best = best[:1] or [line for line in lines if "error" in line.lower()][-1:] or lines[-1:]
    return best[0].replace("\\n\\nAt:", " ").strip()[:500] if best else "no error message"


def _exit(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
