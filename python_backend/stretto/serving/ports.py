"""Checks for free ports, and addresses of a server's ports and sockets."""

import http.client
import ipaddress
import socket
import time
from pathlib import Path

from stretto.serving.installation import LaunchError


def wait_for_ports(ports: dict[str, int], timeout_s: float = 2.0) -> None:
    """Return when all ports are free.

    Args:
        ports: Port of each protocol.
        timeout_s: Time limit in seconds.

    Raises:
        LaunchError: A port is still in use after the time limit.
    """
    deadline = time.monotonic() + timeout_s
    while taken := next(((name, port) for name, port in ports.items() if _is_taken(port)), None):
        if time.monotonic() > deadline:
            name, port = taken
            raise LaunchError(f"port {port} is in use: choose another with --{name}-port, or stop what listens there")
        time.sleep(0.05)


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers set it: ignore ports in TIME_WAIT
        try:
            probe.bind(("", port))
        except OSError:
            return True
    return False


def reachable(address: str) -> str:
    """Return the address at which this host reaches a server that listens at `address`."""
    return "localhost" if ipaddress.ip_address(address).is_unspecified else address


def page_address(address: str, port: int) -> str:
    """Return the URL of the gateway's web page for a browser on this host."""
    host = reachable(address)
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


class UnixConnection(http.client.HTTPConnection):
    """HTTP connection through a Unix socket."""

    def __init__(self, path: Path, timeout_s: float = 2.0) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
