"""A speech server that this process owns: `stretto serve`, from an environment of its own, as a child."""

import asyncio
import ctypes
import json
import os
import re
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any
from urllib.request import urlopen

PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)  # looked up before a child needs it
POLL_S, PAGE_S = 0.3, 2.0
WAITING = re.compile(r"^stretto_waiting_requests(?:\{[^}]*\})? (\S+)$", re.MULTILINE)


class ServerProcess:
    """Listens at three ports of `host` that were free; ends with this process, which it then drains.

    command: what starts a server, without the flags that are this one's to give; more: behind those.
    """

    def __init__(self, command: tuple[str, ...], host: str, drain_s: float, more: tuple[str, ...] = ()) -> None:
        self._host, self._drain_s = host, drain_s
        self._folder = Path(tempfile.mkdtemp(prefix="stretto-ray-"))
        self.log = self._folder / "server.log"
        ports = ("--http-port", 0, "--grpc-port", 0, "--metrics-port", 0)
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
    def address(self) -> str:
        """Of its gRPC service, once it is ready."""
        return f"{self._host}:{self._record()['ports']['grpc']}"

    @property
    def has_ended(self) -> bool:
        """Whether the launcher is gone, which starts again whatever else ends."""
        return self._process.poll() is not None

    def state(self) -> str:
        """`starting`, `ready`, `unready`, `waiting` or `draining`, as the launcher says; `ended` without one."""
        if self.has_ended:
            return "ended"
        return str(self._record().get("state", "starting"))

    def _record(self) -> dict[str, Any]:
        """What the launcher says of itself; empty as long as it has said nothing."""
        try:
            return dict(json.loads(self._pid_file.read_text()))
        except FileNotFoundError:
            return {}

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
            with urlopen(f"http://{self._host}:{self._record()['ports']['metrics']}/metrics", timeout=PAGE_S) as page:
                found = WAITING.search(page.read().decode())
        except (OSError, KeyError):
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


def _end_with_parent() -> None:
    """In the child: SIGTERM, which drains, when the parent ends, however it ends."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
