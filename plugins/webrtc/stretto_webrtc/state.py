"""Options and state of WebRTC calls in a running gateway."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stretto_gateway.gateway import Gateway
from stretto_gateway.routes import RouteSettings, RouteState
from stretto_webrtc.network import CallNetwork

if TYPE_CHECKING:
    from stretto_webrtc.calls import Calls


@dataclass(frozen=True)
class WebRtcOptions(RouteSettings):
    """Options of calls.

    Attributes:
        webrtc_addresses: Addresses at which calls are received, as `UdpAddress.from_text` parses them; none to reject
            calls.
        webrtc_ports: UDP ports of the calls, as `FIRST-LAST`; empty for any.
    """

    webrtc_addresses: tuple[str, ...] = ()
    webrtc_ports: str = ""

    @property
    def files_per_session(self) -> int:
        """Number of sockets of a call."""
        return len(self.webrtc_addresses)


class WebRtcState(RouteState):
    """Network of the calls, and the calls in progress. `calls` is None if there are no addresses."""

    calls: "Calls | None" = None

    def __init__(self, gateway: Gateway):
        options = gateway.config.of_route(WebRtcOptions)
        network = CallNetwork.from_texts(options.webrtc_addresses, options.webrtc_ports)
        self.takes_calls = bool(network.addresses)
        if self.takes_calls:
            from stretto_webrtc.calls import Calls  # needs the extra `webrtc`

            self.calls = Calls(gateway, network)

    async def close(self) -> None:
        """Wait for the calls to end, and then end the remaining ones."""
        if self.calls is not None:
            await self.calls.close()
