"""Speech server as a child process: `stretto serve` in a separate environment."""

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
from urllib.request import ProxyHandler, build_opener

PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)  # loaded before the fork
POLL_S = 0.3
PAGE_S = 2.0
OPENER = build_opener(ProxyHandler({}))  # the variable http_proxy must not apply to this host's own server
WAITING = re.compile(r"^stretto_waiting_requests(?:\{[^}]*\})? (\S+)$", re.MULTILINE)


class ServerProcess:
    """Server on three free ports of `host`; it is drained and ends when this process ends.

    Attributes:
        log: Path of the server's log.
    """

    def __init__(self, command: tuple[str, ...], host: str, drain_s: float, flags: tuple[str, ...] = ()) -> None:
        """Start the server.

        Args:
            command: Command that starts a server, without the flags set here.
            drain_s: Time that utterances have to finish when the server stops.
        """
        self._host = host
        self._drain_s = drain_s
        self._folder = Path(tempfile.mkdtemp(prefix="stretto-ray-"))
        self.log = self._folder / "server.log"
        ports = ("--http-port", 0, "--grpc-port", 0, "--metrics-port", 0)
        files = ("--pid-file", self._pid_file, "--log-file", self.log)
        words = (*command, "--address", host, *ports, *files, "--drain-seconds", drain_s, *flags)
        with (self._folder / "launcher.log").open("wb") as output:
            self._process = subprocess.Popen(
                [str(word) for word in words],
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )

    @property
    def _pid_file(self) -> Path:
        return self._folder / "server.pid"

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def address(self) -> str:
        """Address of the gRPC service, once the server is ready."""
        return f"{self._host}:{self._record()['ports']['grpc']}"

    @property
    def has_ended(self) -> bool:
        """True if the launcher has ended; it restarts all other processes itself."""
        return self._process.poll() is not None

    def state(self) -> str:
        """Return the launcher's state (`STATES` in `stretto.launcher.background`), or `ended` if it has ended."""
        if self.has_ended:
            return "ended"
        return str(self._record().get("state", "starting"))

    def _record(self) -> dict[str, Any]:
        try:
            return dict(json.loads(self._pid_file.read_text()))
        except FileNotFoundError:
            return {}

    async def until_ready(self) -> None:
        """Return when the server is ready; raise RuntimeError, with the launcher's output, if it ends first."""
        while (state := self.state()) != "ready":
            if state == "ended":
                output = (self._folder / "launcher.log").read_text(errors="replace")
                raise RuntimeError(f"the server did not start:\n{output[-2000:].rstrip()}")
            await asyncio.sleep(POLL_S)

    def waiting_rows(self) -> float:
        """Return the number of rows that wait for a batch slot; 0 if the metrics are not available."""
        try:
            with OPENER.open(
                f"http://{self._host}:{self._record()['ports']['metrics']}/metrics", timeout=PAGE_S
            ) as page:
                match = WAITING.search(page.read().decode())
        except (OSError, KeyError):
            return 0.0
        return float(match[1]) if match else 0.0

    def stop(self) -> None:
        if not self.has_ended:
            self._process.terminate()
            try:
                self._process.wait(2 * self._drain_s + 10)  # draining the gateway and the server, and Triton's exit
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def environment() -> dict[str, str]:
    """Return this process's environment without the variables that Ray sets for its workers."""
    of_ray = ("PYTHONPATH", "VIRTUAL_ENV", "OMP_NUM_THREADS")
    return {name: value for name, value in os.environ.items() if name not in of_ray and not name.startswith("RAY_")}


def _end_with_parent() -> None:
    """Make the kernel send this process SIGTERM, which drains it, when its parent ends."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
