"""Life cycle of a launcher instance: start, monitoring, restart, drain and stop."""

import math

from stretto.serving.announcing import Announcer
from stretto.serving.config import LaunchConfig
from stretto.serving.doors import Doors
from stretto.serving.drain import has_drained, num_active_utterances
from stretto.serving.installation import Installation, LaunchError
from stretto.serving.launch_log import LaunchLog, say
from stretto.serving.leftovers import Launch
from stretto.serving.patience import BackOff
from stretto.serving.ports import wait_for_ports
from stretto.serving.server import AbortedStart, Server
from stretto.serving.trouble import Doubt, Trouble, named
from stretto.serving.waiting import Waits

EXIT_S = 2.0  # all streams have ended, so a server that is slow to unload models can be killed
LOOK_S = 0.2  # poll interval of a ready server


class Supervisor:
    """Keeps one server running until a signal requests a stop."""

    def __init__(self, config: LaunchConfig, installation: Installation, launch: Launch, waits: Waits) -> None:
        self._config, self._installation, self._launch = config, installation, launch
        self._waits = waits
        self._was_ready = False
        self._back_off = BackOff()

    def run(self) -> int:
        """Serve until a signal requests a stop; return 0 after a clean stop.

        Raises:
            LaunchError: The server could not be started and has never been ready, or a port is in use.
        """
        wait_for_ports(self._config.ports)
        self._log = LaunchLog(self._config.log_file)
        try:
            self._doors = Doors(self._config, self._launch, self._log)
            self._config = self._doors.config
            self._waits.look = self._doors.keep_alive
            self._announcer = Announcer(self._config, self._doors.proxy)
            try:
                self._serve()
            finally:
                self._doors.stop()
        finally:
            self._log.close()
        say("stopped")
        return 0

    def _serve(self) -> None:
        while not self._waits.num_signals:
            server = self._start()
            if server is None:
                break
            try:
                trouble = self._keep(server)
                if trouble is None:
                    self._stop(server)
                    break
                self._announcer.note("waiting", str(trouble))
            finally:
                self._end(server)
            self._pause(f"{trouble}: restarting the server")

    def _start(self) -> Server | None:
        """Return a ready server, or None if a signal arrived first.

        Raises LaunchError if no server has been ready yet and another start would fail in the same way. After a first
        ready server every failure is retried without limit.
        """
        num_aborted = 0
        while not self._waits.num_signals:
            try:
                return self._start_once()
            except AbortedStart as error:
                num_aborted += 1
                attempts = "as many as it takes" if self._was_ready else self._config.start_attempts
                self._pause(f"start {num_aborted} of {attempts} aborted: {error}")
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
        server = Server(self._config, self._installation, self._launch, self._log, is_again=self._was_ready)
        is_ready = False
        try:
            is_ready = self._until_ready(server)
            return server if is_ready else None
        finally:
            if not is_ready:
                self._end(server)

    def _end(self, server: Server) -> None:
        """Kill the server and clean up after it."""
        server.kill()
        self._launch.clean()

    def _until_ready(self, server: Server) -> bool:
        if not any(server.is_ready() for _ in self._waits.polls(math.inf)):
            return False
        self._was_ready = True
        self._doors.given_up()  # discard reports about the previous run
        self._back_off.note_ready()
        self._announcer.note_ready(server.age_s, server.pid)
        return True

    def _keep(self, server: Server) -> Trouble | None:
        """Return the fault that makes a restart of the server necessary, or None if a signal arrived first."""
        while trouble := self._wait(server):
            if not self._restart_models(server, trouble):
                return trouble
        return None

    def _restart_models(self, server: Server, trouble: Trouble) -> bool:
        """Restart only the failed models; return False if the whole server must be restarted."""
        restart = server.restart_models(trouble.processes)
        if restart is None:
            return False
        say(f"{trouble}: restarting {', '.join(restart.models)}")
        self._announcer.note_restart(str(trouble), restart.spares_answered)
        try:
            self._waits.wait(self._back_off.next_delay_s())
            self._until_ready(server)
        except (AbortedStart, LaunchError, OSError) as error:
            say(f"the models could not be restarted: {error}")
            self._back_off.note_waited()
            return False
        finally:
            restart.close()
        return True

    def _wait(self, server: Server) -> Trouble | None:
        """Monitor the server until it has a fault and return that, or None if a signal arrived first."""
        doubt = Doubt()
        while not self._waits.num_signals:
            trouble = server.wait(LOOK_S) or server.given_up(self._doors.given_up())
            if trouble is not None:
                return trouble
            stopped = server.stopped()
            if doubt.is_news(f"{named(stopped)} is stopped" if stopped else self._doors.fault()):
                say(doubt.reason or "all processes go on")
                self._announcer.note("unready" if doubt.reason else "ready", doubt.reason)
            if stopped and doubt.is_proven:
                return Trouble(stopped, "is stopped")
            self._doors.keep_alive()
        return None

    def _pause(self, reason: str) -> None:
        """Report a failure and wait before the next start; the first failure in a while has no delay."""
        delay_s = self._back_off.next_delay_s()
        say(f"{reason}; the next start is in {delay_s:g} s" if delay_s else reason)
        self._announcer.note("waiting", reason)
        self._waits.wait(delay_s)

    def _stop(self, server: Server) -> None:
        """Refuse new requests, let active streams finish, and end the server.

        A second signal skips the wait.
        """
        self._doors.drain(self._waits.polls(self._config.drain_seconds, num_signals=1))
        self._launch.drain_file.touch()
        self._announcer.note("draining")  # last, because readers of this state rely on new requests being refused
        polls = self._waits.polls(self._config.drain_seconds, num_signals=1)
        if not has_drained(server.pid, self._launch.drain_file, polls):
            say(f"stopping with {num_active_utterances(server.pid)} streams still open")
            return
        say("drained")
        server.terminate()
        for _ in self._waits.polls(EXIT_S, num_signals=1):
            if server.has_ended():
                break
