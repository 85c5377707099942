"""The life of a launch: start, watch, restart, drain, stop."""

import signal
import sys
import time
from types import FrameType

from stretto.serving import pid_file
from stretto.serving.config import LaunchConfig
from stretto.serving.drain import num_active_utterances
from stretto.serving.installation import Installation, LaunchError
from stretto.serving.leftovers import Launch
from stretto.serving.ports import wait_for_ports
from stretto.serving.processes import Process
from stretto.serving.proxy_process import ProxyProcess
from stretto.serving.server import AbortedStart, Server
from stretto.triton_io.draining import is_passing

QUIET_POLLS = 3  # polls in a row without an utterance: one may be on its way from the preprocessor
POLL_S = 0.1
EXIT_S = 2.0  # all streams have ended: what does not unload its models by then may as well be killed
MAX_RESTARTS, RESTART_WINDOW_S = 5, 600.0


class Supervisor:
    """Keeps one server alive until a signal asks it to stop."""

    def __init__(self, config: LaunchConfig, installation: Installation, launch: Launch) -> None:
        self._config = config
        self._installation = installation
        self._launch = launch
        self._num_signals = 0
        self._restarts: list[float] = []

    def run(self) -> int:
        """Serve until told to stop; 0 after a clean stop. Raises LaunchError when the server cannot be kept alive."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup leaves it
                signal.signal(number, self._on_signal)
        wait_for_ports(self._config.ports)
        self._proxy = ProxyProcess(self._config, self._launch)
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
                ended = self._wait(server)
                if not ended:
                    self._stop(server)
                    break
            finally:
                server.kill()
                self._launch.clean()
            self._before_restart(ended)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._num_signals += 1

    def _start(self) -> Server | None:
        """A server that is ready; None when a signal came first."""
        reason = ""
        for attempt in range(1, self._config.start_attempts + 1):
            self._note("starting")
            wait_for_ports(self._config.triton_ports)
            say(f"starting the server; its log: {self._log}")
            server = Server(self._config, self._installation, self._launch)
            try:
                if self._until_ready(server):
                    return server
                server.kill()
                self._launch.clean()
                return None
            except AbortedStart as error:
                server.kill()
                self._launch.clean()
                reason = str(error)
                say(f"start {attempt} of {self._config.start_attempts} aborted: {reason}")
            except LaunchError as error:
                server.kill()
                self._launch.clean()
                raise LaunchError(f"{error}\nthe whole log: {self._log}") from None
        attempts = self._config.start_attempts
        raise LaunchError(f"the server aborted {attempts} times, at last: {reason}\nthe whole log: {self._log}")

    def _until_ready(self, server: Server) -> bool:
        while not server.is_ready():
            if self._num_signals:
                return False
            self._proxy.keep_alive()
            time.sleep(POLL_S)
        self._note("ready")
        ports = ", ".join(f"{name} {port}" for name, port in self._config.ports.items())
        say(f"ready after {server.age_s:.1f} s: {ports}; pid {server.pid}")
        return True

    def _wait(self, server: Server) -> list[Process]:
        """Watch until a process that the server needs has ended; empty when a signal came first."""
        while not self._num_signals:
            ended = server.wait(POLL_S)
            if ended:
                return ended
            self._proxy.keep_alive()
        return []

    def _stop(self, server: Server) -> None:
        """Refuse new requests, let running streams finish, end the server; a second signal skips the wait."""
        self._launch.drain_file.touch()
        self._note("draining")  # only now: whoever reads it may count on new requests being refused
        deadline = time.monotonic() + self._config.drain_seconds
        quiet = 0
        while quiet < QUIET_POLLS and self._num_signals == 1 and time.monotonic() < deadline:
            is_busy = is_passing(self._launch.drain_file) or num_active_utterances(server.pid) > 0
            quiet = 0 if is_busy else quiet + 1
            self._proxy.keep_alive()
            time.sleep(POLL_S)
        if quiet < QUIET_POLLS:
            say(f"stopping with {num_active_utterances(server.pid)} streams still open")
            return
        say("drained")
        server.terminate()
        deadline = time.monotonic() + EXIT_S
        while self._num_signals == 1 and time.monotonic() < deadline and not server.has_ended():
            time.sleep(POLL_S)

    def _before_restart(self, ended: list[Process]) -> None:
        now = time.monotonic()
        self._restarts = [at for at in self._restarts if now - at < RESTART_WINDOW_S] + [now]
        names = ", ".join(f"{process.name} (pid {process.pid})" for process in ended)
        if len(self._restarts) > MAX_RESTARTS:
            raise LaunchError(f"{names} ended; that is restart {len(self._restarts)} in ten minutes; log: {self._log}")
        say(f"{names} ended: restarting the server")

    def _note(self, state: str) -> None:
        pid_file.write(self._config.pid_file, state, self._config.ports, self._log)

    @property
    def _log(self) -> str:
        return str(self._config.log_file or "standard output")


def say(message: str) -> None:
    """A line of the launcher's own."""
    print(f"[serve] {message}", file=sys.stderr, flush=True)
