"""Free ports for servers that tests start."""

import random
import socket
from contextlib import ExitStack

from benchmarks.harness import free_ports

__all__ = ["free_ports", "free_row"]


def free_row(count: int) -> int:
    """Return the first of `count` consecutive free ports, at random because other test runs search, too."""
    rows = range(23_000, 32_000, count)
    for first in random.SystemRandom().sample(rows, len(rows)):
        with ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    stack.enter_context(socket.socket()).bind(("localhost", port))
            except OSError:
                continue
            return first
    raise AssertionError("no free ports")
