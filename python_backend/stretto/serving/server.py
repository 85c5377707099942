"""One run of tritonserver: started, waited for, watched, stopped."""

import ctypes
import http.client
import os
import re
import secrets
import signal
import time
from contextlib import suppress
from pathlib import Path

from stretto.serving.config import LaunchConfig
from stretto.serving.crash import CrashWatch
from stretto.serving.day_clock import DayClock
from stretto.serving.environment import server_environment
from stretto.serving.folders import IMPORT_ROOT
from stretto.serving.installation import Installation, LaunchError
from stretto.serving.launch_log import LaunchLog
from stretto.serving.leftovers import Launch
from stretto.serving.model_restart import ModelRestart
from stretto.serving.patience import slowness
from stretto.serving.ports import UnixConnection, reachable
from stretto.serving.priority import Hurry
from stretto.serving.processes import Process, Watch, descendants, end_all, lost_children, waits_for_a_child
from stretto.serving.proxy.access import CLOSED_APIS, HTTP, REPOSITORY
from stretto.serving.trouble import Trouble

PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)
REGION_BYTES = 16 << 20  # more than 64 streams of speech fill: see docs/architecture.md on regions that grow
STUCK_S = 20.0  # a stub that is told to end does so within half of that
BAD_USAGE = re.compile(r"tritonserver: (unrecognized )?option '")  # before pages about what is right
HARMLESS = re.compile(r"[IW]\d{4} ")  # Triton's information and warnings, as "DCGM unable to start"
TRANSIENT = ("lock_exception", "Timed out occurred while waiting for the stub", "Stub process")


class AbortedStart(Exception):
    """The server died while it started, in a way that another try may not see again."""


def command_line(config: LaunchConfig, installation: Installation, launch: Launch) -> list[str]:
    """The command of the server; what the caller passed comes last and so wins.

    Without auto-completion of model configs, which ours do not need, no stub is started twice. Of each stream that ends
    Triton would keep the newest request, with all that was in it, for another of the model: eight files of 20 MB.
    """
    return [
        str(installation.executable),
        f"--model-repository={config.model_repository}",
        *listening(config, launch),
        *loading(config),
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


def loading(config: LaunchConfig) -> list[str]:
    """Have Triton load all models, and one again when it is told to.

    Not where the caller says otherwise, nor where others may tell it, because the call may bring a model's code along:
    everybody, or with Triton's own HTTP service whoever sees its key in `ps`.
    """
    said = any(flag.startswith(("--model-control-mode", "--load-model")) for flag in config.passed)
    return [] if said or config.allowed & {REPOSITORY, HTTP} else ["--model-control-mode=explicit", "--load-model=*"]


def listening(config: LaunchConfig, launch: Launch) -> list[str]:
    """Where Triton listens: at sockets in the launch's folder, which only this user may enter.

    With its HTTP service open, what else is closed there is so by a key that nobody is told. Another user of this host
    can read it in `ps`.
    """
    flags = [f"--http-address=unix:{launch.http_socket}"]
    if HTTP in config.allowed:
        closed = ",".join(api for api in CLOSED_APIS if api not in config.allowed)
        flags = [f"--http-address={config.address}"]
        flags += [f"--http-restricted-api={closed}:stretto-key={secrets.token_urlsafe()}"] if closed else []
    return [
        *flags,
        f"--http-port={config.http_port}",
        f"--grpc-address=unix:{launch.grpc_socket}",
        f"--grpc-port={config.grpc_port}",
        f"--metrics-address=unix:{launch.metrics_socket}",
        f"--metrics-port={config.metrics_port}",
    ]


def imports_by_place(installation: Installation) -> Path | None:
    """Where to start the server so that its stubs import our package from there; None where they find it anyway.

    They speak ASCII alone when they look for modules, and are deaf to PYTHONPATH.
    """
    return None if installation.imports == IMPORT_ROOT else installation.imports


def die_with_the_launcher() -> None:
    """What a child of the launcher does before it becomes another program."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Server:
    """A tritonserver process and what it writes. It has its own process group: Ctrl-C reaches the launcher alone.

    is_again: one was ready before it, so that its models are loaded with raised priority.
    """

    def __init__(
        self, config: LaunchConfig, installation: Installation, launch: Launch, log: LaunchLog, is_again: bool = False
    ) -> None:
        self._config, self._launch = config, launch
        self._started, self._clock = time.monotonic(), DayClock()
        self._stuck_since: float | None = None
        self._watch: Watch | None = None
        self._restart: ModelRestart | None = None
        self._long_lost: set[int] = set()  # Triton notices when the last of a model's requests is over, if ever
        self._process, self._output = log.start(
            command_line(config, installation, launch),
            env=server_environment(installation, launch),
            cwd=imports_by_place(installation),
            preexec_fn=die_with_the_launcher,
        )
        self._crash = CrashWatch(self._process.pid)
        self._hurry = Hurry(self._process.pid, is_whole=True) if is_again else None
        if self._hurry is not None:
            self._hurry.look()

    @property
    def pid(self) -> int:
        """The server's pid."""
        return self._process.pid

    @property
    def age_s(self) -> float:
        """Seconds since it was started, or its models were again."""
        return time.monotonic() - self._started

    def is_ready(self) -> bool:
        """Whether every model is loaded, and its processes are watched from then on.

        Raises AbortedStart or LaunchError when the server has ended instead.
        """
        code = self._process.poll()
        if code is not None:
            reason = last_error(self._output.tail())
            if code < 0 or any(sign in reason for sign in TRANSIENT):
                raise AbortedStart(f"the server ended with {_exit(code)}: {reason}")
            raise LaunchError(f"the server ended with {_exit(code)}: {reason}")
        if self.age_s > self._config.start_seconds * slowness():
            raise LaunchError(f"the server is not ready after {self.age_s:.0f} s")
        if self._answers_ready() if self._restart is None else self._restart.is_done():
            if self._hurry is not None:
                self._hurry.end()
                self._hurry = None
            self._watch = self._watch_processes()
            self._launch.hide_regions()
            return True
        if self._hurry is not None:
            self._hurry.look()
        self._check_progress()
        return False

    def _check_progress(self) -> None:
        """Raise AbortedStart when the start hangs, as it can in two ways (stub_launcher.cc of python_backend r24.10).

        A stub that has not shown a sign of life for a second while its model loads is given up: the server waits for
        it to end, which nobody has told it to. And for the first message of a stub the server waits without limit,
        also when the stub has died. Triton 25.09 has neither (python_backend, pull request 408).
        """
        now = time.monotonic()
        if waits_for_a_child(self.pid):
            hang = "waited for a stub to end"
        elif lost_children(self.pid) - self._long_lost:
            hang = "not noticed the end of a stub"
        else:
            self._stuck_since = None
            return
        self._stuck_since = self._stuck_since or now
        if now - self._stuck_since > STUCK_S * slowness():
            raise AbortedStart(f"the server has {hang} for {STUCK_S:g} s")

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
        """A watch on the server and on the processes that it cannot do without."""
        me = Process(self.pid, os.getpid(), self.pid, "tritonserver", "")
        watch = Watch([me, *(process for process in descendants(self.pid) if process.is_worker)])
        if lost_children(self.pid) - self._long_lost:
            watch.close()
            raise AbortedStart("a stub ended as soon as its model was loaded")
        return watch

    def wait(self, timeout_s: float) -> Trouble | None:
        """Why the ready server cannot go on, after at most `timeout_s`; early with the first process that ends."""
        assert self._watch is not None, "wait for a server that is ready"
        ended = self._watch.wait(timeout_s)
        return Trouble(ended, "ended") if ended else self._clock.trouble() or self._crash.trouble()

    def given_up(self, model: str | None) -> Trouble | None:
        """That Triton takes the stub of `model` for dead; None where there is none."""
        assert self._watch is not None, "look after a server that is ready"
        stubs = [] if model is None else self._watch.stubs_of(model)
        return Trouble(stubs, "is taken for dead by Triton") if stubs else None

    def stopped(self) -> list[Process]:
        """The processes of the ready server that a signal has stopped."""
        assert self._watch is not None, "look after a server that is ready"
        return self._watch.stopped()

    def restart_models(self, broken: list[Process]) -> ModelRestart | None:
        """Begin to start again the models that these processes ran, and nothing else; None where that cannot be.

        The server is not ready until then, and `is_ready` goes on with it.
        """
        assert self._watch is not None, "restart models of a server that is ready"
        models = self._watch.models_of(broken)
        if not models or not loading(self._config):
            return None
        self._watch.end_models(models)
        self._launch.free_dead_locks()
        self._watch.close()
        self._watch = self._stuck_since = None
        self._long_lost = lost_children(self.pid)
        self._output.forget()
        self._started = time.monotonic()
        self._restart = ModelRestart(sorted(models), self._connection)
        # Loading must not slow the streams down that go on.
        self._hurry = None if self._restart.spares_answered else Hurry(self.pid)
        return self._restart

    def terminate(self) -> None:
        """Ask the server to end; it takes at most its own exit time-out."""
        self._process.terminate()

    def has_ended(self) -> bool:
        """Whether the process is gone."""
        return self._process.poll() is not None

    def kill(self) -> None:
        """End the server and all its group at once."""
        self._process.kill()
        self._process.wait()
        end_all(lambda process: process.group == self.pid)
        if self._watch is not None:
            self._watch.close()
        self._output.close()


def last_error(output: str) -> str:
    """Return the line of a server's output that best explains why it ended."""
    lines = [line for line in output.splitlines() if not HARMLESS.match(line)]
    telling = [line[found.start() :] for line in lines if (found := BAD_USAGE.search(line))]
    telling = telling or [line for line in lines if "failed to load '" in line and "depend" not in line]
    telling = telling[:1] or [line for line in lines if "error" in line.lower()][-1:] or lines[-1:]
    return telling[0].replace("\\n\\nAt:", " ").strip()[:500] if telling else "it wrote no error"


def _exit(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
