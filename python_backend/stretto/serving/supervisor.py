"""The life of a launch: start, watch, restart, drain, stop."""

import math
import signal
import time
from collections.abc import Iterator
from types import FrameType

from stretto.serving.announcing import Announcer, say
from stretto.serving.config import LaunchConfig
from stretto.serving.drain import num_active_utterances
from stretto.serving.installation import Installation, LaunchError
from stretto.serving.leftovers import Launch
from stretto.serving.patience import BackOff
from stretto.serving.ports import wait_for_ports
from stretto.serving.processes import Process
from stretto.serving.proxy_process import ProxyProcess
from stretto.serving.server import AbortedStart, Server
from stretto.triton_io.draining import is_passing

QUIET_POLLS = 3  # polls in a row without an utterance: one may be on its way from the preprocessor
POLL_S = 0.1
EXIT_S = 2.0  # all streams have ended: what does not unload its models by then may as well be killed
LOOK_S = 0.2  # how often the processes of a ready server are looked at
PROOF_S = 2.0  # what a signal has stopped for so long is not going on by itself


class Doubt:
    """What is wrong with a server that may yet come right by itself."""

    def __init__(self) -> None:
        self.reason = ""
        self._since = time.monotonic()

    def is_news(self, reason: str) -> bool:
        """Take note of what is wrong now, or of nothing; whether that is something else than before."""
        if reason == self.reason:
            return False
        self.reason, self._since = reason, time.monotonic()
        return True

    @property
    def is_proven(self) -> bool:
        """Whether it has lasted for too long."""
        return bool(self.reason) and time.monotonic() - self._since >= PROOF_S


class Supervisor:
    """Keeps one server alive until a signal asks it to stop."""

    def __init__(self, config: LaunchConfig, installation: Installation, launch: Launch) -> None:
        self._config = config
        self._installation = installation
        self._launch = launch
        self._num_signals = 0
        self._was_ready = False
        self._back_off = BackOff()

    def run(self) -> int:
        """Serve until told to stop; 0 after a clean stop. Raises LaunchError when the server has never been ready."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup leaves it
                signal.signal(number, self._on_signal)
        wait_for_ports(self._config.ports)
        self._proxy = ProxyProcess(self._config, self._launch)
        self._announcer = Announcer(self._config, self._proxy)
        try:
            self._serve()
        finally:
            self._proxy.stop()
        say("stopped")
        return 0

    def _serve(self) -> None:
        while not self._num_signals:
            server = self._start()
            if server is None:
                break
            try:
                trouble = self._wait(server)
                if not trouble:
                    self._stop(server)
                    break
                self._announcer.note("waiting", trouble)
            finally:
                self._end(server)
            self._pause(f"{trouble}: restarting the server")

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._num_signals += 1

    def _start(self) -> Server | None:
        """A server that is ready; None when a signal came first.

        Raises LaunchError where none has been ready yet and the next start would end as this one. Once there was one,
        whatever fails is tried again, for as long as it takes.
        """
        num_aborted = 0
        while not self._num_signals:
            try:
                return self._start_once()
            except AbortedStart as error:
                num_aborted += 1
                self._pause(f"start {num_aborted} of {self._attempts} aborted: {error}")
                if not self._was_ready and num_aborted == self._config.start_attempts:
                    reason = f"the server aborted {num_aborted} times, at last: {error}"
                    raise LaunchError(f"{reason}\nthe whole log: {self._announcer.log}") from None
            except (LaunchError, OSError) as error:
                if not self._was_ready:
                    raise LaunchError(f"{error}\nthe whole log: {self._announcer.log}") from None
                self._pause(f"the start failed: {error}")
        return None

    def _start_once(self) -> Server | None:
        self._announcer.note("starting")
        wait_for_ports(self._config.triton_ports)
        say(f"starting the server; its log: {self._announcer.log}")
        server = Server(self._config, self._installation, self._launch)
        is_ready = False
        try:
            is_ready = self._until_ready(server)
            return server if is_ready else None
        finally:
            if not is_ready:
                self._end(server)

    def _end(self, server: Server) -> None:
        """End whatever is left of a server."""
        server.kill()
        self._launch.clean()

    def _until_ready(self, server: Server) -> bool:
        if not any(server.is_ready() for _ in self._polls(math.inf)):
            return False
        self._was_ready = True
        self._back_off.note_ready()
        self._announcer.note("ready")
        ports = ", ".join(f"{name} {port}" for name, port in self._config.ports.items())
        say(f"ready after {server.age_s:.1f} s: {ports}; pid {server.pid}")
        return True

    def _wait(self, server: Server) -> str:
        """Watch until the server cannot go on, and say why; nothing when a signal came first."""
        doubt = Doubt()
        while not self._num_signals:
            ended = server.wait(LOOK_S)
            if ended:
                return f"{named(ended)} ended"
            stopped = server.stopped()
            if doubt.is_news(f"{named(stopped)} is stopped" if stopped else ""):
                say(doubt.reason or "all processes go on")
                self._announcer.note("unready" if doubt.reason else "ready", doubt.reason)
            if doubt.is_proven:
                return doubt.reason
            self._proxy.keep_alive()
        return ""

    def _pause(self, reason: str) -> None:
        """Say what failed, and wait before the next start: not at all after the first failure in a while."""
        delay_s = self._back_off.next_delay_s()
        say(f"{reason}; the next start is in {delay_s:g} s" if delay_s else reason)
        self._announcer.note("waiting", reason)
        for _ in self._polls(delay_s):
            pass

    def _stop(self, server: Server) -> None:
        """Refuse new requests, let running streams finish, end the server; a second signal skips the wait."""
        self._launch.drain_file.touch()
        self._announcer.note("draining")  # only now: whoever reads it may count on new requests being refused
        quiet = 0
        for _ in self._polls(self._config.drain_seconds, num_signals=1):
            is_busy = is_passing(self._launch.drain_file) or num_active_utterances(server.pid) > 0
            quiet = 0 if is_busy else quiet + 1
            if quiet == QUIET_POLLS:
                break
        if quiet < QUIET_POLLS:
            say(f"stopping with {num_active_utterances(server.pid)} streams still open")
            return
        say("drained")
        server.terminate()
        for _ in self._polls(EXIT_S, num_signals=1):
            if server.has_ended():
                break

    def _polls(self, seconds: float, num_signals: int = 0) -> Iterator[None]:
        """Every POLL_S, until the time is up or more signals have come."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self._num_signals == num_signals:
            yield
            self._proxy.keep_alive()
            time.sleep(POLL_S)

    @property
    def _attempts(self) -> str:
        return "as many as it takes" if self._was_ready else str(self._config.start_attempts)


def named(processes: list[Process]) -> str:
    """Processes as a message names them."""
    return ", ".join(f"{process.name} (pid {process.pid})" for process in processes)
