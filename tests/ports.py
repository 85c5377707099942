"""Ports on which nobody listens, for servers that tests start."""

import socket
from contextlib import ExitStack

from scripts.temporary_server import free_ports

__all__ = ["free_ports", "free_row"]


def free_row(count: int) -> int:
    """The first of `count` free ports in a row."""
    for first in range(23000, 23900, count):
        with ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    stack.enter_context(socket.socket()).bind(("localhost", port))
            except OSError:
                continue
            return first
    raise AssertionError("no free ports")
