"""Waiting for events that must happen. Only failures take the full time, at any load."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

PATIENCE_S = 600.0


def until(condition: Callable[[], object], failure: str = "the condition never held") -> None:
    """Wait until `condition()` is true."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, failure
        time.sleep(0.01)


async def until_async(
    condition: Callable[[], object], failure: Callable[[], str] = lambda: "the condition never held"
) -> None:
    """Wait until `condition()` is true in an event loop; the failure message is created only if needed."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, failure()
        await asyncio.sleep(0.01)


def written(path: Path) -> str:
    """Return the text that a process has written to a file so far; "" if the file does not exist yet."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""
