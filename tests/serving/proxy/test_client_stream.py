"""What passes between a client's stream and Triton's."""

import asyncio
from collections.abc import AsyncIterator

from tritonclient.grpc.service_pb2 import ModelInferRequest, ModelStreamInferResponse

from stretto.serving.proxy.client_stream import ClientStream

WAIT_S = 60


class Triton:
    """Answers each request at once."""

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
    """A client that takes answers as it is let."""

    def __init__(self) -> None:
        self.takes = asyncio.Event()
        self.is_offered, self.num_taken = asyncio.Event(), 0

    async def write(self, response: bytes) -> None:
        self.is_offered.set()
        await self.takes.wait()
        self.num_taken += 1


async def sound(request: bytes) -> None:
    await asyncio.sleep(0)


async def test_who_takes_no_answers_is_asked_for_no_further() -> None:
    triton, reader = Triton(), Reader()
    num_sent = 0

    async def requests() -> AsyncIterator[bytes]:
        nonlocal num_sent
        while num_sent < 1000:
            num_sent += 1
            yield ModelInferRequest(model_name="speech").SerializeToString()

    client = ClientStream(triton, reader, lambda model: None)  # type: ignore[arg-type]
    answering = asyncio.create_task(client.answer())
    feeding = asyncio.create_task(client.feed(requests(), sound, "127.0.0.1"))
    async with asyncio.timeout(WAIT_S):
        await reader.is_offered.wait()
        for _ in range(5000):  # turns of the loop, in which it would be asked for all
            await asyncio.sleep(0)
        assert triton.num_asked == num_sent - 1 < 10
        reader.takes.set()
        while reader.num_taken < 1000:
            await asyncio.sleep(0)
    assert triton.num_asked == num_sent == 1000
    answering.cancel()
    feeding.cancel()
