"""Fixtures of the gateway's tests, and a gateway that listens for Wyoming's clients."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from plugins.wyoming.tests.line import Line, connected
from stretto_wyoming.state import WyomingOptions, WyomingState
from tests.gateway.conftest import Running, Start, start
from tests.gateway.test_model_servers import several

__all__ = ["Begin", "begin", "several", "start"]
Begin = Callable[..., Awaitable[tuple[Running, Line]]]


@pytest.fixture
async def begin(start: Start) -> AsyncIterator[Begin]:
    """Start a gateway, and connect a client to its Wyoming port."""
    lines = list[Line]()

    async def connect(*args: Any, **settings: Any) -> tuple[Running, Line]:
        running = await start(*args, routes=(WyomingOptions("127.0.0.1"),), **settings)
        line = await connected(port_of(running))
        lines.append(line)
        return running, line

    yield connect
    for line in lines:
        line.close()


def port_of(running: Running) -> int:
    """Return the Wyoming port of a gateway."""
    port = running.app.state.gateway.of_route(WyomingState).port
    assert port is not None
    return port
