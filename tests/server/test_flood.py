"""One caller asks for more speech than the server can generate; every request of another caller is answered."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import httpx
import pytest

from stretto_client import ServerFull, SpeechClient
from tests.patience import PATIENCE_S
from tests.server.conftest import Server
from tests.server.openai_client import PATIENT, gateway_port

pytestmark = pytest.mark.server

LONG = "The garden door is open, and the train to the city leaves at twenty past nine. " * 50  # 4 KB
KEYS = ("the-key-of-the-flood", "the-key-of-another-one")
NUM_FLOODING, NUM_SHORT = 60, 4


@asynccontextmanager
async def flooding(server: Server, speak: Callable[[], Awaitable[bool]]) -> AsyncIterator[None]:
    """Speak long texts over and over during the `with` block, which begins once the server's slots are in use.

    Args:
        server: The server.
        speak: Function that speaks a long text; it returns False if it was refused.
    """

    async def connection() -> None:
        while True:
            if not await speak():
                await asyncio.sleep(0.1)

    tasks = [asyncio.create_task(connection()) for _ in range(NUM_FLOODING)]
    try:
        # the pairs of 64 sequences, and those that wait for one of them
        await asyncio.to_thread(server.until, lambda: server.metric("pairs") >= 40)
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def answered(short: Callable[[], Awaitable[bool]]) -> list[bool]:
    """Return whether each of NUM_SHORT requests one after the other, and as many at once, was answered."""
    return [await short() for _ in range(NUM_SHORT)] + await asyncio.gather(*(short() for _ in range(NUM_SHORT)))


@pytest.mark.nightly  # by day through the gateway, which uses gRPC
async def test_flood_over_grpc_excludes_nobody(server: Server) -> None:
    address = f"localhost:{server.grpc}"

    async def speaks(client: SpeechClient, text: str) -> bool:
        try:
            return [event.is_final async for event in client.speak(text)][-1]
        except ServerFull:
            return False

    async with (
        SpeechClient(address, PATIENT, caller=lambda: "flood") as flood,
        SpeechClient(address, PATIENT, caller=lambda: "other") as other,
        flooding(server, lambda: speaks(flood, LONG)),
    ):
        async with asyncio.timeout(PATIENCE_S):
            while await speaks(flood, "Hi."):  # a slot may just have become free
                pass
        assert all(await answered(lambda: speaks(other, "Hi.")))
    await asyncio.to_thread(server.until, lambda: server.metric("active_utterances") == 0)


async def test_flood_through_the_gateway_excludes_nobody(server: Server) -> None:
    async def speaks(http: httpx.AsyncClient, key: str, text: str) -> bool:
        body = {"model": "tts-1", "input": text, "response_format": "pcm"}
        headers = {"authorization": f"Bearer {key}"}
        async with http.stream("POST", "/v1/audio/speech", json=body, headers=headers) as answer:
            return answer.status_code == 200 and sum([len(part) async for part in answer.aiter_bytes()]) > 0

    unlimited = httpx.Limits(max_connections=None)
    async with (
        gateway_port(server.grpc, keys=KEYS) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S, limits=unlimited) as http,
        flooding(server, lambda: speaks(http, KEYS[0], LONG)),
    ):
        assert all(await answered(lambda: speaks(http, KEYS[1], "Hi.")))
    await asyncio.to_thread(server.until, lambda: server.metric("active_utterances") == 0)
