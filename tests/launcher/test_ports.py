"""A port in use is reported, unless it is released in time."""

import socket
import threading

import pytest

from stretto.launcher.installation import LaunchError, page_address, wait_for_ports
from tests.patience import PATIENCE_S


def listener() -> tuple[socket.socket, int]:
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    return taken, taken.getsockname()[1]


@pytest.mark.parametrize(
    ("address", "page"),
    [
        ("127.0.0.1", "http://127.0.0.1:8003/"),
        ("0.0.0.0", "http://localhost:8003/"),
        ("::", "http://localhost:8003/"),
        ("fd00::1", "http://[fd00::1]:8003/"),
    ],
)
def test_page_address_is_usable_in_a_browser(address: str, page: str) -> None:
    assert page_address(address, 8003) == page


def test_a_port_in_use_is_named() -> None:
    taken, port = listener()
    with pytest.raises(LaunchError, match=f"port {port} is in use: choose another with --grpc-port"):
        wait_for_ports({"grpc": port}, timeout_s=0.1)
    taken.close()


def test_launcher_waits_for_a_port_to_be_released() -> None:
    taken, port = listener()
    threading.Timer(0.2, taken.close).start()
    wait_for_ports({"http": port}, timeout_s=PATIENCE_S)
