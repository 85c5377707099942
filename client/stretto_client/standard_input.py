"""Standard input as text: a whole file, or pieces from a pipe as they arrive."""

import asyncio
import codecs
import os
import stat
import sys
import threading
from collections.abc import AsyncIterator

MAX_READ_BYTES = 65_536


def standard_input() -> str | AsyncIterator[str]:
    """Return all of a file, or the pieces from a pipe; raise UnicodeDecodeError if it is not UTF-8."""
    descriptor = sys.stdin.fileno()
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return sys.stdin.read()
    return pieces_from(descriptor)


async def pieces_from(descriptor: int) -> AsyncIterator[str]:
    """Yield text in whole characters as it arrives; a daemon thread reads the descriptor."""
    loop, came = asyncio.get_running_loop(), asyncio.Queue[bytes | OSError]()
    wanted = threading.Semaphore(1)

    def read() -> None:
        while wanted.acquire():
            data: bytes | OSError
            try:
                data = os.read(descriptor, MAX_READ_BYTES)
            except OSError as error:
                data = error
            try:
                loop.call_soon_threadsafe(came.put_nowait, data)
            except RuntimeError:  # the event loop has ended
                return
            if not data or isinstance(data, OSError):
                return

    threading.Thread(target=read, name="standard input", daemon=True).start()
    decoder = codecs.getincrementaldecoder("utf-8")()
    while True:
        data = await came.get()
        if isinstance(data, OSError):
            raise data
        text = decoder.decode(data, final=not data)
        if text:
            yield text
        if not data:
            return
        wanted.release()
