"""Route of Wyoming's clients, which has a port of its own and no endpoint."""

import argparse
from ipaddress import ip_address

from fastapi import APIRouter

from stretto_contract.listening import LOOPBACK, listen, listening_address
from stretto_gateway.command import read_keys
from stretto_gateway.gateway import Gateway
from stretto_gateway.routes import Route
from stretto_wyoming.state import WyomingOptions, WyomingState


class WyomingRoute(Route):
    """Wyoming, the protocol of Home Assistant's voice assistants."""

    position = 60
    router = APIRouter()

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        about = "also listen for Home Assistant (Wyoming, without authentication), usually at 10300; default: no"
        parser.add_argument("--wyoming", type=listening_place, metavar="[HOST:]PORT", help=about)

    def read_settings(self, args: argparse.Namespace) -> WyomingOptions | None:
        if args.wyoming is None:
            return None
        address, port = args.wyoming
        if not ip_address(address).is_loopback and read_keys(args.keys):
            expected = f"{LOOPBACK}, because the gateway has keys and Wyoming's clients cannot send one"
            raise ValueError(f"--wyoming: expected the address {expected}, got {address}")
        try:
            listen(address, port, backlog=1).close()
        except OSError as error:
            raise ValueError(f"--wyoming: {error.strerror}") from None
        return WyomingOptions(address, port)

    def make_state(self, gateway: Gateway) -> WyomingState:
        return WyomingState(gateway)


def listening_place(text: str) -> tuple[str, int]:
    """Parse `[HOST:]PORT`, for argparse. Without HOST, only this host can connect."""
    host, _, port = text.rpartition(":")
    if not (port.isdecimal() and len(port) <= 5 and int(port) < 65_536):
        raise argparse.ArgumentTypeError(f"expected [HOST:]PORT with a port from 0 to 65535, got {text!r}")
    return listening_address(host) if host else LOOPBACK, int(port)


ROUTE = WyomingRoute()
