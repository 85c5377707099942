"""Route of calls over WebRTC, which are realtime sessions."""

import argparse
import os
import socket

from starlette.types import Scope

from stretto_gateway.gateway import Gateway
from stretto_gateway.realtime.client_secrets import PREFIX, ClientSecret
from stretto_gateway.realtime.state import RealtimeState
from stretto_gateway.routes import Route
from stretto_webrtc.endpoints import router
from stretto_webrtc.network import CallNetwork
from stretto_webrtc.state import WebRtcOptions, WebRtcState

ADDRESSES = "STRETTO_WEBRTC_ADDRESSES"
PORTS = "STRETTO_WEBRTC_PORTS"
PATH = "/v1/realtime/calls"  # it and the paths below take client secrets


class WebRtcRoute(Route):
    """OpenAI's realtime calls, whose clients may have a client secret instead of a key."""

    position = 50
    router = router

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        default = f"default: {ADDRESSES}, or no calls"
        about = f"IP address of WebRTC calls, or ANNOUNCED=BOUND behind a NAT; repeatable; {default}"
        add("--webrtc-address", action="append", metavar="ADDRESS", help=about)
        about = f"UDP ports of WebRTC calls, one for each call; default: {PORTS}, or any"
        add("--webrtc-ports", metavar="FIRST-LAST", default=os.environ.get(PORTS, ""), help=about)

    def read_settings(self, args: argparse.Namespace) -> WebRtcOptions:
        addresses = tuple(args.webrtc_address or filter(None, os.environ.get(ADDRESSES, "").split(",")))
        check_network(addresses, args.webrtc_ports)
        return WebRtcOptions(addresses, args.webrtc_ports)

    def make_state(self, gateway: Gateway) -> WebRtcState:
        return WebRtcState(gateway)

    def takes_secret(self, scope: Scope, key: str) -> bool:
        path = scope["path"]
        is_call = path == PATH or path.startswith(f"{PATH}/")
        return bool(scope["type"] == "http" and is_call and key.startswith(PREFIX))

    def find_secret(self, gateway: Gateway, key: str) -> ClientSecret | None:
        return gateway.of_route(RealtimeState).secrets.find(key)


def check_network(addresses: tuple[str, ...], ports: str) -> None:
    """Raise ValueError if the settings of WebRTC calls are invalid, or an address cannot be bound."""
    network = CallNetwork.from_texts(addresses, ports)
    for address in network.addresses:
        family = socket.AF_INET6 if ":" in address.bound else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind((address.bound, 0))
            except OSError as error:
                raise ValueError(f"--webrtc-address: cannot bind to {address.bound}: {error.strerror}") from None


ROUTE = WebRtcRoute()
