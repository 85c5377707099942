"""The state of a launch, announced on standard error, in the pid file, and through the proxy as readiness."""

from contextlib import suppress

from stretto.serving import pid_file
from stretto.serving.config import LaunchConfig
from stretto.serving.launch_log import say
from stretto.serving.ports import page_address
from stretto.serving.proxy_process import ProxyProcess

READY = "ready"


class Announcer:
    """Notes the state of a launch wherever it is read."""

    def __init__(self, config: LaunchConfig, proxy: ProxyProcess) -> None:
        self._config, self._proxy = config, proxy
        self.log = str(config.log_file or "standard output")

    def note(self, state: str, reason: str = "") -> None:
        """The launch is in this state from now on, because of `reason` where something is wrong."""
        self._proxy.tell(is_ready=state == READY)
        self._write(state, reason)

    def note_ready(self, age_s: float, pid: int) -> None:
        """The server with this pid is ready, so long after its start."""
        self.note(READY)
        ports = ", ".join(f"{name} {port}" for name, port in self._config.ports.items())
        say(f"ready after {age_s:.1f} s: {ports}; pid {pid}")
        if self._config.gateway_port is not None:
            say(f"the page: {page_address(self._config.address, self._config.gateway_port)}")

    def note_restart(self, reason: str, spares_answered: bool) -> None:
        """Models are started again from now on; requests are refused, and those in flight ended.

        spares_answered: but for those that are being answered.
        """
        self._proxy.shut(spares_answered)
        self._write("starting", reason)

    def _write(self, state: str, reason: str) -> None:
        with suppress(OSError):  # a full disk ends no server
            config = self._config
            pid_file.write(config.pid_file, state, config.ports, self.log, reason, config.stop_seconds)
