"""A speech server that this process owns: `stretto serve`, from an environment of its own, as a child."""

import asyncio
import ctypes
import json
import os
import re
import signal
import socket
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from urllib.request import urlopen

PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)  # looked up before a child needs it
POLL_S, PAGE_S = 0.3, 2.0
WAITING = re.compile(r"^stretto_waiting_requests(?:\{[^}]*\})? (\S+)$", re.MULTILINE)


class ServerProcess:
    """Listens at three free ports of `host`; ends with this process, which it then drains.

    command: what starts a server, without the flags that are this one's to give; more: behind those.
    """

    def __init__(self, command: tuple[str, ...], host: str, drain_s: float, more: tuple[str, ...] = ()) -> None:
        self._host, self._drain_s = host, drain_s
        self._folder = Path(tempfile.mkdtemp(prefix="stretto-ray-"))
        http, grpc, self._metrics_port = free_ports(host, 3)
        self.address = f"{host}:{grpc}"
        self.log = self._folder / "server.log"
        ports = ("--http-port", http, "--grpc-port", grpc, "--metrics-port", self._metrics_port)
        files = ("--pid-file", self._pid_file, "--log-file", self.log)
        words = (*command, "--address", host, *ports, *files, "--drain-seconds", drain_s, *more)
        with (self._folder / "launcher.log").open("wb") as said:
            self._process = subprocess.Popen(
                [str(word) for word in words],
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )

    @property
    def _pid_file(self) -> Path:
        return self._folder / "server.pid"

    @property
    def pid(self) -> int:
        """The launcher's."""
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Whether the launcher is gone, which starts again whatever else ends."""
        return self._process.poll() is not None

    def state(self) -> str:
        """`starting`, `ready`, `unready`, `waiting` or `draining`, as the launcher says; `ended` without one."""
        if self.has_ended:
            return "ended"
        try:
            return str(json.loads(self._pid_file.read_text())["state"])
        except FileNotFoundError:
            return "starting"

    async def until_ready(self) -> None:
        """Return once it takes requests; RuntimeError, with what the launcher said, where it ends before."""
        while (state := self.state()) != "ready":
            if state == "ended":
                said = (self._folder / "launcher.log").read_text(errors="replace")
                raise RuntimeError(f"the server did not start:\n{said[-2000:].rstrip()}")
            await asyncio.sleep(POLL_S)

    def waiting_rows(self) -> float:
        """Rows that wait for a place in the batch; 0 while there is no page of figures."""
        try:
            with urlopen(f"http://{self._host}:{self._metrics_port}/metrics", timeout=PAGE_S) as page:
                found = WAITING.search(page.read().decode())
        except OSError:
            return 0.0
        return float(found[1]) if found else 0.0

    def stop(self) -> None:
        """Drain and end it."""
        if not self.has_ended:
            self._process.terminate()
            try:
                self._process.wait(2 * self._drain_s + 10)  # the gateway's turn, the server's, and Triton's exit
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def environment() -> dict[str, str]:
    """What a server is told: this process's, without what Ray has set for its own workers."""
    own = ("PYTHONPATH", "VIRTUAL_ENV", "OMP_NUM_THREADS")
    return {name: value for name, value in os.environ.items() if name not in own and not name.startswith("RAY_")}


def free_ports(host: str, number: int) -> list[int]:
    """Ports of `host` at which nobody listens now."""
    with ExitStack() as held:
        probes = [held.enter_context(socket.create_server((host, 0))) for _ in range(number)]
        return [probe.getsockname()[1] for probe in probes]


def _end_with_parent() -> None:
    """In the child: SIGTERM, which drains, when the parent ends, however it ends."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
