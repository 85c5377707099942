"""State of a launcher instance, published on standard error, in the pid file, and as the proxy's readiness."""

from contextlib import suppress

from stretto.serving import pid_file
from stretto.serving.config import LaunchConfig
from stretto.serving.launch_log import say
from stretto.serving.ports import page_address
from stretto.serving.proxy_process import ProxyProcess

READY = "ready"


class Announcer:
    """Publisher of the launcher's state."""

    def __init__(self, config: LaunchConfig, proxy: ProxyProcess) -> None:
        self._config, self._proxy = config, proxy
        self.log = str(config.log_file or "standard output")

    def note(self, state: str, reason: str = "") -> None:
        """Publish a new state.

        Args:
            state: One of `pid_file.STATES`.
            reason: Why the server is not ready; empty if nothing is wrong.
        """
        self._proxy.tell(is_ready=state == READY)
        self._write(state, reason)

    def note_ready(self, age_s: float, pid: int) -> None:
        """Publish that the server is ready.

        Args:
            age_s: Seconds from its start until it was ready.
            pid: Pid of the server.
        """
        self.note(READY)
        ports = ", ".join(f"{name} {port}" for name, port in self._config.ports.items())
        say(f"ready after {age_s:.1f} s: {ports}; pid {pid}")
        if self._config.gateway_port is not None:
            say(f"the page: {page_address(self._config.address, self._config.gateway_port)}")

    def note_restart(self, reason: str, spares_answered: bool) -> None:
        """Publish that models are being restarted: the proxy refuses requests and ends those in flight.

        Args:
            reason: Why models are restarted.
            spares_answered: True if requests that have received a first response may continue.
        """
        self._proxy.shut(spares_answered)
        self._write("starting", reason)

    def _write(self, state: str, reason: str) -> None:
        with suppress(OSError):  # a full disk must not end the server
            config = self._config
            pid_file.write(config.pid_file, state, config.ports, self.log, reason, config.stop_seconds)
