"""Front-end processes of a launcher instance: the proxy and the optional gateway."""

from collections.abc import Iterable

from stretto.serving.config import LaunchConfig
from stretto.serving.gateway_process import GatewayProcess
from stretto.serving.launch_log import LaunchLog
from stretto.serving.leftovers import Launch
from stretto.serving.proxy_process import ProxyProcess


class Doors:
    """Front-end processes; they outlive Triton restarts.

    Attributes:
        proxy: The proxy.
        config: Configuration of the launcher instance with the ports at which the proxy listens.
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
        """Restart front-end processes that have ended or hang."""
        self.proxy.keep_alive()
        if self._gateway is not None and not self._is_draining:
            self._gateway.keep_alive()

    def fault(self) -> str:
        """Return a description of the proxy's or the gateway's fault; empty if none is known."""
        return self.proxy.fault() or (self._gateway.fault() if self._gateway is not None else "")

    def given_up(self) -> str | None:
        """Return the model that Triton reported as unhealthy since the last call, or None."""
        return self.proxy.given_up()

    def drain(self, polls: Iterable[None]) -> None:
        """Let the gateway finish its responses, which requires the server, until `polls` is exhausted."""
        self._is_draining = True
        if self._gateway is not None:
            self._gateway.drain(polls)

    def stop(self) -> None:
        """Stop both processes."""
        if self._gateway is not None:
            self._gateway.stop()
        self.proxy.stop()
