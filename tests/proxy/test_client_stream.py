"""Messages between a client's stream and Triton's stream."""

import asyncio
from typing import Any

import grpc
import pytest
from tritonclient.grpc.service_pb2 import ModelInferRequest, ModelStreamInferResponse

from stretto.proxy.infer_request import BadRequest
from stretto.proxy.triton_stream import Check, ClientStream
from tests.patience import PATIENCE_S

NUM_REQUESTS = 1000


class Triton:
    """Fake Triton that answers each request at once."""

    number = 7

    def __init__(self) -> None:
        self.num_asked = 0
        self._answers = asyncio.Queue[bytes]()

    async def write(self, request: bytes) -> None:
        self.num_asked += 1
        self._answers.put_nowait(ModelStreamInferResponse().SerializeToString())

    async def end(self) -> None:
        pass

    async def read(self) -> bytes:
        return await self._answers.get()


class Reader:
    """Client that sends 1000 requests and reads answers when permitted."""

    def __init__(self) -> None:
        self.takes, self.is_offered = asyncio.Event(), asyncio.Event()
        self.num_sent = self.num_taken = 0

    async def read(self) -> Any:
        if self.num_sent == NUM_REQUESTS:
            return grpc.aio.EOF
        self.num_sent += 1
        return ModelInferRequest(model_name="speech").SerializeToString()

    async def write(self, response: bytes) -> None:
        self.is_offered.set()
        await self.takes.wait()
        self.num_taken += 1


async def sound(request: bytes) -> None:
    await asyncio.sleep(0)


async def unsound(request: bytes) -> None:
    raise BadRequest("no")


@pytest.mark.parametrize("check", [sound, unsound])
async def test_requests_are_not_read_while_responses_are_unread(check: Check) -> None:
    triton, reader = Triton(), Reader()
    client = ClientStream(triton, reader, lambda model: None)  # type: ignore[arg-type]
    answering = asyncio.create_task(client.answer())
    feeding = asyncio.create_task(client.feed(check, "127.0.0.1"))
    async with asyncio.timeout(PATIENCE_S):
        await reader.is_offered.wait()
        for _ in range(5000):  # turns of the loop, in which all could be sent
            await asyncio.sleep(0)
        assert reader.num_sent < 10
        assert triton.num_asked == (reader.num_sent if check is sound else 0)
        reader.takes.set()
        while reader.num_taken < NUM_REQUESTS:
            await asyncio.sleep(0)
    await feeding
    answering.cancel()


async def test_checked_requests_are_sent_to_triton_without_delay() -> None:
    """A gate that closes meanwhile would not count the request."""
    triton, reader = Triton(), Reader()
    seen = list[int]()

    async def checked(request: bytes) -> None:
        seen.append(triton.num_asked)

    client = ClientStream(triton, reader, lambda model: None)  # type: ignore[arg-type]
    answering = asyncio.create_task(client.answer())
    feeding = asyncio.create_task(client.feed(checked, "127.0.0.1"))
    async with asyncio.timeout(PATIENCE_S):
        await reader.is_offered.wait()
        for _ in range(100):
            await asyncio.sleep(0)
    assert len(seen) == triton.num_asked
    answering.cancel()
    feeding.cancel()
