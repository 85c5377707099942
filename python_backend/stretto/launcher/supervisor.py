"""Life cycle of the launcher: start the server, watch it, restart it after faults, drain and stop it."""

import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType

from stretto.launcher import background, mps
from stretto.launcher.config import LaunchConfig
from stretto.launcher.faults import Fault, PendingFault, named
from stretto.launcher.front_ends import GatewayProcess, ProxyProcess, engine_spare
from stretto.launcher.installation import Installation, LaunchError, page_address, wait_for_ports
from stretto.launcher.launch import Launch
from stretto.launcher.launch_log import LaunchLog, log_line
from stretto.launcher.replicas import Replicas, replica_config
from stretto.launcher.server import AbortedStart, TritonServer, identity
from stretto.launcher.timeouts import BackOff, slowness
from stretto.triton_io.flow import DIRECTORY, tables_of
from stretto.triton_io.stub import is_passing
from stretto_contract.listening import described

POLL_S = 0.1


class Waits:
    """Interruptible waits."""

    def __init__(self) -> None:
        self.on_poll: Callable[[], None] = lambda: None
        self.num_signals = 0

    def catch_signals(self) -> None:
        """Install signal handlers that end waits, not the process; call this before there is anything to clean up."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # ignored under nohup: keep it so
                signal.signal(number, self._on_signal)

    def polls(self, seconds: float, num_signals: int = 0) -> Iterator[None]:
        """Yield every POLL_S, until a time limit, or until more than `num_signals` signals have been received."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.num_signals == num_signals:
            yield
            self.on_poll()
            time.sleep(POLL_S)

    def wait(self, seconds: float) -> None:
        for _ in self.polls(seconds):
            pass

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.num_signals += 1


READY = "ready"


class StatePublisher:
    """Publisher of the launcher's state to the proxy, the pid file and the log.

    Attributes:
        is_announced: False from the time Triton is ready until the log says that the server, and the gateway if there
            is one, are ready; True before the first start.
    """

    def __init__(self, config: LaunchConfig, proxy: ProxyProcess) -> None:
        self._config = config
        self._proxy = proxy
        self.is_announced = True
        self.log = str(config.log_file or "standard output")

    def record(self, state: str, reason: str = "", serves: bool = False) -> None:
        """Publish a new state.

        Args:
            state: One of `background.STATES`.
            reason: Why the server is not ready; empty if nothing is wrong.
            serves: True if the proxy is ready in this state.
        """
        self._proxy.report_ready(is_ready=serves or state == READY)
        self._write(state, reason, serves)

    def note_served(self, reason: str) -> None:
        """Publish that Triton is ready, so that the gateway can become ready; `reason` is why it is not yet."""
        self.is_announced = False
        self.record("starting", reason, serves=True)

    def note_ready(self, age_s: float, pid: int) -> None:
        """Publish that the server, `age_s` after its start, and the gateway, if there is one, are ready."""
        self.record(READY)
        if self.is_announced:
            log_line("all processes are running again")
            return
        self.is_announced = True
        address = self._config.address
        gateway_address = self._config.gateway_address
        ports = dict(self._config.ports)
        apart = ""
        if self._config.gateway_port is not None and gateway_address != address:
            apart = f", gateway {ports.pop('gateway')} at {described(gateway_address)}"
        names = ", ".join(f"{name} {port}" for name, port in ports.items())
        log_line(f"ready after {age_s:.1f} s: {names} at {described(address)}{apart}; pid {pid}")
        if self._config.gateway_port is not None:
            log_line(f"web page: {page_address(gateway_address, self._config.gateway_port)}")

    def note_restart(self, reason: str, spares_answered: bool) -> None:
        """Publish that models are being restarted; the proxy refuses new requests and ends those in flight.

        With `spares_answered`, requests that have received a first response may continue.
        """
        self._proxy.close_gate(spares_answered)
        self._write("starting", reason)

    def note_asleep(self, reason: str = "") -> None:
        """Publish that Triton is stopped until a request wakes the server; requests wait in the proxy.

        If the last start for a request has failed, `reason` is why.
        """
        self.is_announced = False
        self._proxy.report_asleep()
        self._write("asleep", reason, serves=True)

    def note_failed_wake(self, reason: str) -> None:
        """Publish that the server could not be started for a request; the proxy refuses those that wait."""
        self._proxy.report_failed_wake()
        self._write("waiting", reason)

    def _write(self, state: str, reason: str, serves: bool = False) -> None:
        with suppress(OSError):  # a full disk must not end the server
            config = self._config
            seconds = config.stop_seconds
            model = config.model
            background.write(config.pid_file, state, config.ports, self.log, reason, seconds, serves, model)


class FrontEndProcesses:
    """The proxy, the optional gateway, the other replicas and the spare processes; they outlive restarts of Triton.

    Attributes:
        config: Launcher configuration with the ports on which the proxy listens.
    """

    def __init__(self, config: LaunchConfig, installation: Installation, launch: Launch, log: LaunchLog) -> None:
        self._spare = engine_spare(installation, launch, log)  # first, because it takes longest
        try:
            self.proxy = ProxyProcess(config, launch, log)
        except BaseException:
            self._spare.stop()
            raise
        self.config = config = config.listening_at(self.proxy.ports)
        self._gateway: GatewayProcess | None = None
        self._replicas: Replicas | None = None
        self._is_draining = False
        if config.gateway_port is not None:
            try:
                self._gateway = GatewayProcess(config, config.gateway_port, launch, log)
            except BaseException:
                self._spare.stop()
                self.proxy.stop()
                raise
        if config.shares:
            self._replicas = Replicas(config)

    def keep_alive(self) -> None:
        self.proxy.keep_alive()
        self._spare.keep_alive()
        if self._gateway is not None and not self._is_draining:
            self._gateway.keep_alive()
        if self._replicas is not None and not self._is_draining:
            self._replicas.keep_alive()

    def fault(self) -> str:
        """Return a description of the proxy's or the gateway's fault; empty if there is none."""
        return self.proxy.fault() or (self._gateway.fault() if self._gateway is not None else "")

    def unready_gateway(self) -> str:
        """Return why the gateway cannot answer requests; empty if it can, or if there is none."""
        return "" if self._gateway is None else self._gateway.unready()

    def unhealthy_model(self) -> str | None:
        return self.proxy.unhealthy_model()

    def drain(self, polls: Iterable[None]) -> None:
        """Let the gateway complete its responses until `polls` ends, while the server keeps running."""
        self._is_draining = True
        if self._gateway is not None:
            self._gateway.drain(polls)
        if self._replicas is not None:
            self._replicas.drain()

    def stop(self) -> None:
        self._spare.stop()
        if self._gateway is not None:
            self._gateway.stop()
        self.proxy.stop()
        if self._replicas is not None:
            self._replicas.stop()


QUIET_POLLS = 3  # consecutive idle polls: an utterance may be in transit from the preprocessor


def num_active_utterances(server_pid: int, directory: Path = DIRECTORY) -> int:
    """Return the number of utterances in flight on a server, from its acknowledgement tables."""
    return sum(table.num_active() for table in tables_of(server_pid, directory))


def has_drained(server_pid: int, drain_file: Path, polls: Iterable[None]) -> bool:
    """Wait until all requests of a draining server have ended; return False if `polls` ends first."""
    quiet = 0
    for _ in polls:
        is_busy = is_passing(drain_file) or num_active_utterances(server_pid) > 0
        quiet = 0 if is_busy else quiet + 1
        if quiet == QUIET_POLLS:
            return True
    return False


GATEWAY_S = 10.0  # time for the gateway to notice a ready server, before the gateway is reported as not ready
EXIT_S = 2.0  # all streams have ended, so a server that is slow to unload its models can be killed
CHECK_INTERVAL_S = 0.2  # poll interval of a ready server


class Supervisor:
    """Supervisor of a server: restarts it after faults until a signal requests a stop."""

    def __init__(self, config: LaunchConfig, installation: Installation, launch: Launch, waits: Waits) -> None:
        self._config = config
        self._installation = installation
        self._launch = launch
        self._waits = waits
        self._was_ready = False
        self._back_off = BackOff()

    def run(self) -> int:
        """Serve until a signal requests a stop; return 0."""
        wait_for_ports(self._config.ports)
        for number in range(1, len(self._config.shares)):
            wait_for_ports(replica_config(self._config, number).ports)  # or the gateway would use another program
        self._log = LaunchLog(self._config.log_file, self._launch.work_folder)
        try:
            self._front_ends = FrontEndProcesses(self._config, self._installation, self._launch, self._log)
            self._config = self._front_ends.config
            self._waits.on_poll = self._front_ends.keep_alive
            self._publisher = StatePublisher(self._config, self._front_ends.proxy)
            try:
                self._serve()
            finally:
                self._front_ends.stop()
        finally:
            self._log.close()
        log_line("stopped")
        return 0

    def _serve(self) -> None:
        server = self._start()
        while server is not None:
            fault = self._serve_with(server)
            if fault is not None:
                self._pause(f"{fault}: restarting the server")
                server = self._start()
            else:
                server = self._sleep()

    def _serve_with(self, server: TritonServer) -> Fault | None:
        """Watch a server until a signal, a fault or `idle_s` without requests; end it and return the fault, if any."""
        try:
            fault = self._keep(server)
            if fault is not None:
                self._publisher.record("waiting", str(fault))
                if fault.spares_requests:
                    self._await_requests(server, fault)
            elif self._waits.num_signals:
                self._stop(server)
            else:
                log_line(f"no request for {self._config.idle_s:g} s: the server sleeps until the next one")
                self._publisher.note_asleep()
                self._exit(server)
            return fault
        finally:
            self._end(server)

    def _sleep(self) -> TritonServer | None:
        """Start a server when a request needs it, and return it when it is ready; return None after a signal.

        A start that fails is not repeated before another request needs the server.
        """
        while not self._waits.num_signals:
            if not any(self._front_ends.proxy.has_woken() for _ in self._waits.polls(math.inf)):
                break
            log_line("a request wakes the server")
            try:
                return self._start(is_limited=True)
            except LaunchError as error:
                log_line(f"the server could not start again: {error}")
                self._publisher.note_failed_wake(str(error))
                self._waits.wait(self._back_off.next_delay_s())
                self._publisher.note_asleep(str(error))
        return None

    def _start(self, is_limited: bool = False) -> TritonServer | None:
        """Start a server and return it once it is ready; return None if a signal arrives first.

        Once a server has been ready, every failed start is repeated without limit, unless `is_limited`. If no attempts
        are left, or another one would fail in the same way, raise LaunchError.
        """
        is_limited = is_limited or not self._was_ready
        num_aborted = 0
        while not self._waits.num_signals:
            try:
                return self._start_once()
            except AbortedStart as error:
                num_aborted += 1
                attempts = self._config.start_attempts if is_limited else "unlimited"
                self._pause(f"start {num_aborted} of {attempts} aborted: {error}")
                if is_limited and num_aborted == self._config.start_attempts:
                    reason = f"the server aborted {num_aborted} times; last error: {error}"
                    raise LaunchError(f"{reason}\nfull log: {self._publisher.log}") from None
            except (LaunchError, OSError) as error:
                if is_limited:
                    raise LaunchError(f"{error}\nfull log: {self._publisher.log}") from None
                self._pause(f"the start failed: {error}")
        return None

    def _start_once(self) -> TritonServer | None:
        self._publisher.record("starting")
        wait_for_ports(self._config.triton_ports)
        mps.start(self._config.model_repository, self._launch)
        log_line(f"starting the server; its log: {self._publisher.log}")
        log_line(f"serving {identity(self._config)}")
        server = TritonServer(
            self._config, self._installation, self._launch, self._log, was_ready_before=self._was_ready
        )
        is_ready = False
        try:
            is_ready = self._until_ready(server)
            return server if is_ready else None
        finally:
            if not is_ready:
                self._end(server)

    def _end(self, server: TritonServer) -> None:
        server.kill()
        mps.stop(self._launch)
        self._launch.clean()
        self._launch.drain_file.unlink(missing_ok=True)

    def _until_ready(self, server: TritonServer) -> bool:
        if not any(server.is_ready() for _ in self._waits.polls(math.inf)):
            return False
        self._was_ready = True
        background.outlive_starter()
        self._front_ends.unhealthy_model()  # discard reports about the previous run
        self._back_off.note_ready()
        self._publisher.note_served(self._front_ends.unready_gateway())
        for _ in self._waits.polls(GATEWAY_S * slowness()):
            if not self._front_ends.unready_gateway():
                self._publisher.note_ready(server.age_s, server.pid)
                break
            if server.has_ended():
                break
        return True

    def _keep(self, server: TritonServer) -> Fault | None:
        """Watch a server and restart models until a fault requires a new server; return it, or None after a signal.

        The result is also None once the server is idle.
        """
        while fault := self._wait(server):
            if not self._restart_models(server, fault):
                return fault
        return None

    def _restart_models(self, server: TritonServer, fault: Fault) -> bool:
        """Restart only the models with the fault; return False if the whole server must be restarted."""
        restart = server.restart_models(fault.processes)
        if restart is None:
            return False
        log_line(f"{fault}: restarting {', '.join(restart.models)}")
        self._publisher.note_restart(str(fault), restart.spares_answered)
        try:
            self._waits.wait(self._back_off.next_delay_s())
            self._until_ready(server)
        except (AbortedStart, LaunchError, OSError) as error:
            log_line(f"the models could not be restarted: {error}")
            self._back_off.note_waited()
            return False
        finally:
            restart.close()
        return True

    def _wait(self, server: TritonServer) -> Fault | None:
        """Watch the server; return its first fault, or None if a signal arrives or the server becomes idle first."""
        pending = PendingFault()
        while not self._waits.num_signals and not self._front_ends.proxy.is_idle():
            fault = server.wait(CHECK_INTERVAL_S) or server.dead_stub(self._front_ends.unhealthy_model())
            if fault is not None:
                return fault
            stopped = server.stopped()
            broken = f"{named(stopped)} is stopped" if stopped else self._front_ends.fault()
            has_changed = pending.update(broken or self._front_ends.unready_gateway())
            if pending.reason and has_changed:
                log_line(pending.reason)
                self._publisher.record("unready", pending.reason, serves=not broken)
            elif has_changed or not (pending.reason or self._publisher.is_announced):
                self._publisher.note_ready(server.age_s, server.pid)
            if stopped and pending.is_proven:
                return Fault(stopped, "is stopped")
            self._front_ends.keep_alive()
        return None

    def _pause(self, reason: str) -> None:
        """Log a failure and wait before the next start, as `BackOff` requires."""
        delay_s = self._back_off.next_delay_s()
        log_line(f"{reason}; the next start is in {delay_s:g} s" if delay_s else reason)
        self._publisher.record("waiting", reason)
        self._waits.wait(delay_s)

    def _await_requests(self, server: TritonServer, fault: Fault) -> None:
        """Refuse new requests, and wait until those in flight have ended, for at most the time of a drain."""
        self._launch.drain_file.touch()
        if num_active_utterances(server.pid):
            log_line(f"{fault}: the server will be restarted when its requests have ended")
        has_drained(server.pid, self._launch.drain_file, self._waits.polls(self._config.drain_seconds))

    def _stop(self, server: TritonServer) -> None:
        """Refuse new requests, let running ones complete, and end the server; a second signal skips the wait."""
        self._front_ends.drain(self._waits.polls(self._config.drain_seconds, num_signals=1))
        self._launch.drain_file.touch()
        self._publisher.record("draining")  # last, because readers of this state rely on new requests being refused
        polls = self._waits.polls(self._config.drain_seconds, num_signals=1)
        if not has_drained(server.pid, self._launch.drain_file, polls):
            log_line(f"stopping with {num_active_utterances(server.pid)} streams still open")
            return
        log_line("drained")
        self._exit(server)

    def _exit(self, server: TritonServer) -> None:
        """Ask a server without requests to exit, and wait for at most EXIT_S."""
        server.terminate()
        for _ in self._waits.polls(EXIT_S, num_signals=1):
            if server.has_ended():
                break
