"""Channel of a front-end process (proxy or gateway) to the launcher: heartbeats, and the listening socket.

Heartbeats show that the event loop runs. The launcher keeps the listening socket, so that connections wait while the
process is replaced.
"""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress

BEATS = "STRETTO_BEATS"  # environment variable: descriptor of the launcher's socket; not set without a launcher
KEPT_LISTENER = "STRETTO_LISTENER"  # environment variable: descriptor of the listening socket that the launcher kept
BEAT_S = 1.0
READY_BEAT = b"r"
BEAT = b"."
LISTENER = b"l"  # sent with a listening socket


async def beat(is_ready: Callable[[], Awaitable[bool]] | None = None) -> None:
    """Write a byte to the launcher's socket every BEAT_S seconds, until cancelled.

    Args:
        is_ready: Returns True if the process accepts requests, which the byte then reports; None to report nothing.
            No byte is written while it runs.
    """
    channel = os.environ.get(BEATS)
    while channel is not None:
        state = READY_BEAT if is_ready is not None and await is_ready() else BEAT
        with suppress(OSError):  # the socket is full, or the launcher has exited
            os.write(int(channel), state)
        await asyncio.sleep(BEAT_S)


def kept_listener() -> socket.socket | None:
    """Return the listening socket of the process that this one replaces; None if the launcher has kept none."""
    descriptor = os.environ.get(KEPT_LISTENER)
    return None if descriptor is None else socket.socket(fileno=int(descriptor))


def keep_listener(listener: socket.socket) -> None:
    """Pass a listening socket to the launcher, which keeps it for the process that will replace this one."""
    channel = os.environ.get(BEATS)
    if channel is None:
        return
    with suppress(OSError), socket.socket(fileno=os.dup(int(channel))) as launcher:
        socket.send_fds(launcher, [LISTENER], [listener.fileno()])
