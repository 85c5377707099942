"""What callers may send before anybody knows who they are: heads without end, and connections that say nothing."""

import asyncio

import pytest

from stretto_gateway import connection
from stretto_gateway.config import Limits
from tests.gateway.conftest import Running, Start

HEAD = b"POST /v1/audio/speech HTTP/1.1\r\nhost: x\r\n"
Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def connect(running: Running, data: bytes = b"") -> Pair:
    host, port = running.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(data)
    return reader, writer


async def read_all(reader: asyncio.StreamReader) -> bytes:
    """What comes until the connection is closed, or reset."""
    read = b""
    try:
        async with asyncio.timeout(20):
            while part := await reader.read(65_536):
                read += part
    except ConnectionError:
        pass
    return read


async def test_connections_that_say_nothing_make_room(start: Start) -> None:
    running = await start(limits=Limits(max_connections=4, drain_s=1))
    silent = [await connect(running, HEAD[:n]) for n in range(12)]
    async with running.http() as http:
        assert (await http.get("/health/live")).status_code == 200
    for _, writer in silent:
        writer.close()


@pytest.mark.parametrize(
    ("before", "again"),
    [
        (HEAD + b"x: ", b"a" * 1000),
        (HEAD, b"a: b\r\n" * 200),
        (b"GET /", b"a" * 1000),
        (HEAD + b"transfer-encoding: chunked\r\n\r\n0\r\n", b"a: b\r\n" * 200),
        (HEAD + b"transfer-encoding: chunked\r\n\r\n1;", b"a" * 1000),
    ],
    ids=["value", "headers", "path", "trailers", "extension"],
)
async def test_a_head_has_an_end(start: Start, before: bytes, again: bytes) -> None:
    reader, writer = await connect(await start(limits=Limits(stall_s=60, drain_s=1)), before + again * 200)
    answer = await read_all(reader)
    assert answer.startswith(b"HTTP/1.1 400 ") or not answer
    writer.close()


@pytest.mark.parametrize("data", [b"", HEAD, b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\nGET"])
async def test_a_head_that_does_not_come_is_not_waited_for(
    start: Start, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    monkeypatch.setattr(connection, "HEAD_S", 0.2)
    running = await start()
    reader, writer = await connect(running, data)
    await read_all(reader)
    writer.close()


async def test_who_is_refused_and_sends_on_is_left(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_S", 0.2)
    running = await start(keys=("sk-0123456789abcdef",))
    reader, writer = await connect(running, HEAD + b"transfer-encoding: chunked\r\n\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.1 401 ")
    for _ in range(100):
        writer.write(b"1\r\n \r\n")
        await asyncio.sleep(0.02)
        if writer.is_closing():
            break
    assert writer.is_closing()
