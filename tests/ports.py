"""Ports on which nobody listens, for servers that tests start."""

import socket
from contextlib import ExitStack


def free_ports(count: int) -> list[int]:
    """`count` free ports, anywhere."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


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
