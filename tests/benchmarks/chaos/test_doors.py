"""Readers of the soak test read the gateway's answers correctly."""

import asyncio
import random

import numpy as np
import pytest

from benchmarks.chaos.load import Answer, GatewayAsk, Reader, listen, read

ASK = GatewayAsk("gateway 0", "gateway", {"input": "a cat", "response_format": "pcm"})
SAMPLES = np.arange(500, dtype=np.int16)


def chunks(*sizes: int) -> bytes:
    """Return an answer with samples in chunks of these sizes, but without its end."""
    answer, data = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", SAMPLES.tobytes()
    for size in sizes:
        answer += f"{size:x}\r\n".encode() + data[:size] + b"\r\n"
        data = data[size:]
    return answer


async def heard(answer: bytes, reader: Reader = listen) -> Answer:
    """Return what a reader gets if the sender closes the connection after `answer`."""

    async def serve(incoming: asyncio.StreamReader, outgoing: asyncio.StreamWriter) -> None:
        assert (await incoming.readuntil(b"\r\n\r\n")).startswith(b"POST /v1/audio/speech ")
        outgoing.write(answer)
        await outgoing.drain()
        outgoing.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        return await read(ASK, f"127.0.0.1:{port}", reader, random.Random(1), 60.0)


async def test_samples_are_reassembled_from_any_chunks() -> None:
    got = await heard(chunks(1, 2, 996, 1) + b"0\r\n\r\n")
    np.testing.assert_array_equal(got.samples(), SAMPLES)
    assert (got.is_final, got.error, got.samples().dtype) == (True, None, np.int16)


@pytest.mark.parametrize(
    ("status", "error"),
    [(400, "RequestRefused"), (429, "ServerFull"), (503, "ServerUnavailable"), (500, "ServerFailed")],
)
async def test_http_status_maps_to_a_client_error(status: int, error: str) -> None:
    got = await heard(f"HTTP/1.1 {status} X\r\nContent-Length: 2\r\n\r\n{{}}".encode())
    assert (got.error, got.message) == (error, f"{status}: {{}}")
