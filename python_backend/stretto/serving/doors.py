"""What stands before Triton for the whole of a launch: the proxy, and the gateway where there is one."""

from collections.abc import Iterable

from stretto.serving.config import LaunchConfig
from stretto.serving.gateway_process import GatewayProcess
from stretto.serving.launch_log import LaunchLog
from stretto.serving.leftovers import Launch
from stretto.serving.proxy_process import ProxyProcess


class Doors:
    """Open from the start of a launch to its end, over the restarts of what is behind them.

    config: that of the launch, with the ports that the proxy has.
    """

    def __init__(self, config: LaunchConfig, launch: Launch, log: LaunchLog) -> None:
        self.proxy = ProxyProcess(config, launch, log)
        self.config = config = config.listening_at(self.proxy.ports)
        self._gateway: GatewayProcess | None = None
        self._is_draining = False
        if config.gateway_port is not None:
            try:
                self._gateway = GatewayProcess(config, config.gateway_port, log)
            except BaseException:
                self.proxy.stop()
                raise

    def keep_alive(self) -> None:
        """Start again what has ended or hangs."""
        self.proxy.keep_alive()
        if self._gateway is not None and not self._is_draining:
            self._gateway.keep_alive()

    def fault(self) -> str:
        """Return what is wrong with the proxy or the gateway; empty if nothing is known to be."""
        return self.proxy.fault() or (self._gateway.fault() if self._gateway is not None else "")

    def given_up(self) -> str | None:
        """The model that Triton has given up, as its answers say; None where they say no such thing."""
        return self.proxy.given_up()

    def drain(self, polls: Iterable[None]) -> None:
        """Let the gateway complete what it answers, for which it needs the server, while `polls` goes on."""
        self._is_draining = True
        if self._gateway is not None:
            self._gateway.drain(polls)

    def stop(self) -> None:
        """End both."""
        if self._gateway is not None:
            self._gateway.stop()
        self.proxy.stop()
