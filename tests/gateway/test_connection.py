"""Unauthenticated connections: endless headers, floods of requests, and silence."""

import asyncio
import json
import socket
import time
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
import uvloop
from starlette.applications import Starlette
from uvicorn.server import ServerState

from stretto_client import Timeouts
from stretto_gateway import connection
from stretto_gateway.config import Limits
from stretto_gateway.connection import (
    FREE_PARTS,
    MAX_HEADERS,
    MAX_PIPELINED,
    MAX_SMALL,
    MAX_UPGRADE_LINE,
    NUM_TINY,
    Connection,
    Reads,
)
from tests.client.fake_server import Until
from tests.gateway.conftest import NUM_SAMPLES, SPOKEN, Running, Start
from tests.patience import PATIENCE_S, until_async

HEAD = b"POST /v1/audio/speech HTTP/1.1\r\nhost: x\r\n"
LIVE = b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n"
SCHEMA = b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n"
BODY = json.dumps({"input": "A cat.", "response_format": "pcm"}).encode()
SPEECH = HEAD + b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(BODY) + BODY
UPGRADE = (
    b"GET /v1/realtime HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def connect(running: Running, data: bytes = b"", num_unread: int | None = None) -> Pair:
    """Connect and send `data`; the client's receive buffer has `num_unread` bytes."""
    host, port = running.url.removeprefix("http://").split(":")
    made = socket.socket()
    made.setblocking(False)
    if num_unread is not None:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, num_unread)
    await asyncio.get_running_loop().sock_connect(made, (host, int(port)))
    reader, writer = await asyncio.open_connection(sock=made)
    writer.write(data)
    return reader, writer


async def read_all(reader: asyncio.StreamReader) -> bytes:
    """Return everything up to the end or reset of the connection."""
    read = b""
    try:
        async with asyncio.timeout(PATIENCE_S):
            while part := await reader.read(65_536):
                read += part
    except ConnectionError:
        pass
    return read


@pytest.mark.parametrize("path", [b"/openapi.json", b"/v1/audio/speech"], ids=["length", "streamed"])
async def test_http_1_0_responses_are_not_chunked(start: Start, path: bytes) -> None:
    running = await start()
    method, fields = (b"POST", SPEECH.partition(b"\r\n")[2]) if path == b"/v1/audio/speech" else (b"GET", b"\r\n")
    reader, writer = await connect(running, method + b" " + path + b" HTTP/1.0\r\n" + fields)
    head, _, body = (await read_all(reader)).partition(b"\r\n\r\n")
    writer.close()
    assert b" 200 " in head
    assert b"transfer-encoding" not in head
    assert b"connection: close" in head
    if method == b"GET":
        assert b"content-length: %d\r\n" % len(body) in head + b"\r\n"
    else:
        assert body == b"\x00\x20" * NUM_SAMPLES


async def test_idle_connections_are_closed_for_new_ones(start: Start) -> None:
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
async def test_endless_http_head_is_refused(start: Start, before: bytes, again: bytes) -> None:
    reader, writer = await connect(await start(limits=Limits(stall_s=60, drain_s=1)), before + again * 200)
    answer = await read_all(reader)
    assert answer.startswith(b"HTTP/1.1 400 ") or not answer
    writer.close()


async def made_by(running: Running, data: bytes = b"") -> tuple[Pair, Connection]:
    """Connect and return both ends; the gateway's end reads `data` in one piece."""
    pair = await connect(running)
    await until_async(lambda: running.server.server_state.connections)
    (made,) = running.server.server_state.connections
    assert isinstance(made, Connection)
    made.data_received(data)
    return pair, made


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health/live HTTP/1.1\r\nhost: x\r\na: " + b"a" * 70_000 + b"\r\n\r\n",
        b"GET /health/live HTTP/1.1\r\nhost: x\r\n" + (b"a: " + b"a" * 3000 + b"\r\n") * 25 + b"\r\n",
        b"GET /health/live?" + b"a" * 70_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
    ],
    ids=["value", "headers", "path"],
)
async def test_oversized_http_head_in_one_read_is_refused(start: Start, head: bytes) -> None:
    (reader, writer), _ = await made_by(await start(), head)
    answer = await read_all(reader)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.endswith(b"at most 65536 bytes.")
    writer.close()


async def test_http_header_count_is_limited(start: Start) -> None:
    head = b"GET /health/live HTTP/1.1\r\n" + b"a:\r\n" * MAX_HEADERS
    running = await start()
    reader, writer = await connect(running, head + b"connection: close\r\n\r\n")
    assert b"at most 100 headers" in await read_all(reader)
    writer.close()
    reader, writer = await connect(running, head[:-4] + b"connection: close\r\n\r\n")
    assert b" 200 " in await read_all(reader)
    writer.close()


@pytest.mark.parametrize("part", [b"1\r\na\r\n", b"1;a=b\r\n \r\n"], ids=["chunks", "extensions"])
async def test_too_many_tiny_http_chunks_are_refused(start: Start, part: bytes) -> None:
    headers = b"content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    running = await start()
    few = b"%x\r\n" % len(BODY) + BODY + b"\r\n" + b"1\r\n \r\n" * (FREE_PARTS // 2) + b"0\r\n\r\n"
    reader, writer = await connect(running, HEAD + b"connection: close\r\n" + headers + few)
    assert (await read_all(reader)).startswith(b"HTTP/1.1 200 ")
    writer.close()
    reader, writer = await connect(running, HEAD + headers + part * 2 * FREE_PARTS)
    answer = await read_all(reader)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"at least 16 bytes on average" in answer
    writer.close()


async def test_single_byte_reads_are_coalesced(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "TINY_PER_S", 0.001)  # even reads on a slow machine count as fast
    (reader, writer), made = await made_by(await start())
    head = HEAD.replace(b"POST", b"GET") + b"a: " + b"a" * NUM_TINY
    for index in range(NUM_TINY - 2):  # after the read of a first request
        made.data_received(head[index : index + 1])
    assert made.transport.is_reading()
    made.data_received(head[NUM_TINY - 2 : NUM_TINY])
    assert not made.transport.is_reading()
    writer.write(head[NUM_TINY:] + b"\r\nconnection: close\r\n\r\n")
    assert (await read_all(reader)).startswith(b"HTTP/1.1 405 ")
    writer.close()


def test_reads_count_as_tiny_if_small_and_fast() -> None:
    now = [0.0]
    made: Any = Reads(SimpleNamespace(time=lambda: now[0]))

    def read(num_bytes: int, each_s: float) -> bool:
        for _ in range(NUM_TINY):
            now[0] += each_s
            made.add(num_bytes)
        return made.are_tiny

    assert [read(32, 0.001), read(1, 0.006), read(31, 0.004)] == [False, False, True]
    assert [read(1000, 0.05), read(1, 0.05), read(1024, 0.05), read(1000, 0.001)] == [True, True, False, False]


@pytest.mark.parametrize("where", ["authorization", "url"])
async def test_websocket_upgrade_line_length_is_limited(start: Start, where: str) -> None:
    async def answer(num: int) -> bytes:
        old, new = (b"\r\n\r\n", b"\r\nauthorization: " + b"a" * num + b"\r\n\r\n")
        if where == "url":
            old, new = b"/v1/realtime", b"/v1/realtime?x=" + b"a" * num
        reader, writer = await connect(running, UPGRADE.replace(old, new))
        async with asyncio.timeout(PATIENCE_S):
            head = await reader.readuntil(b"\r\n\r\n")
        writer.close()
        return head

    running = await start()
    assert (await answer(MAX_UPGRADE_LINE + 1)).startswith(b"HTTP/1.1 400 ")
    assert (await answer(20_000)).startswith(b"HTTP/1.1 400 ")
    assert (await answer(MAX_UPGRADE_LINE - 20)).startswith(b"HTTP/1.1 101 ")


def let_second_last(made: Connection) -> None:
    """Stop the clock of the rate limit, so that its second does not end however long a test takes."""
    later_s = made.loop.time() + 3600
    made._small._loop = SimpleNamespace(time=lambda: later_s)


async def test_small_writes_are_read_in_larger_batches(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "TINY_BYTES", 0)
    (reader, writer), made = await made_by(await start())
    let_second_last(made)
    head = HEAD.replace(b"POST", b"GET") + b"a: " + b"a" * MAX_SMALL
    for index in range(len(head)):
        made.data_received(head[index : index + 1])
    assert not made.transport.is_reading()
    made.flow.pause_reading()
    made.flow.resume_reading()  # which another reason to stop does not undo
    assert not made.transport.is_reading()
    made.flow._release()  # as at the end of the second
    writer.write(b"\r\nconnection: close\r\n\r\n")
    assert (await read_all(reader)).startswith(b"HTTP/1.1 405 ")
    writer.close()


async def test_requests_of_a_connection_are_rate_limited(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MAX_SMALL", 10)
    (reader, writer), made = await made_by(await start())
    let_second_last(made)
    num = 0
    async with asyncio.timeout(PATIENCE_S):
        while made.transport.is_reading():
            writer.write(LIVE)
            assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
            num += 1
        assert num >= 5, "each is a read and a request"
        writer.write(LIVE)
        made.flow._release()  # as at the end of the second
        assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
    writer.close()


async def test_idle_connection_outlasts_a_balancers_sixty_seconds(start: Start) -> None:
    (reader, writer), made = await made_by(await start())
    writer.write(LIVE)
    await reader.readuntil(b"\r\n\r\n")
    await until_async(lambda: made.timeout_keep_alive_task is not None)
    assert made.timeout_keep_alive_task is not None
    assert made.timeout_keep_alive_task.when() > made.loop.time() + 60
    writer.close()


@pytest.mark.parametrize("before", [b"", LIVE], ids=["new", "used"])
async def test_idle_connection_outlasts_an_incomplete_head(
    start: Start, monkeypatch: pytest.MonkeyPatch, before: bytes
) -> None:
    monkeypatch.setattr(connection, "HEAD_S", 0.2)
    running = await start()
    reader, writer = await connect(running, before)
    if before:
        await reader.readuntil(b"\r\n\r\n")
    incomplete_reader, incomplete_writer = await connect(running, HEAD)
    await read_all(incomplete_reader)
    writer.write(LIVE)
    assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
    for each in (writer, incomplete_writer):
        each.close()


async def test_connection_without_a_request_is_closed(start: Start) -> None:
    running = await start(limits=Limits(keep_alive_s=1, drain_s=1))
    for data in (b"", LIVE):
        reader, writer = await connect(running, data)
        await read_all(reader)
        writer.close()


@pytest.mark.parametrize("data", [HEAD[:1], HEAD, LIVE + b"GET"])
async def test_incomplete_http_head_times_out(start: Start, monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(connection, "HEAD_S", 0.2)
    running = await start()
    reader, writer = await connect(running, data)
    await read_all(reader)
    writer.close()


def test_http_head_received_during_a_stalled_loop_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_S", 0.2)
    state = ServerState()
    config = uvicorn.Config(Starlette(), log_config=None)
    config.load()

    async def ask_while_held_up() -> bytes:
        loop = asyncio.get_running_loop()
        listener = await loop.create_server(lambda: Connection(config, state, {}), "127.0.0.1", 0)
        near, far = socket.socketpair()
        with near, far, socket.create_connection(listener.sockets[0].getsockname()) as made:

            def hold_up() -> None:
                loop.remove_reader(near)
                made.sendall(LIVE)
                time.sleep(3 * connection.HEAD_S)

            async with listener, asyncio.timeout(PATIENCE_S):
                while not state.connections:
                    await asyncio.sleep(0.005)
                loop.add_reader(near, hold_up)
                far.send(b"now")
                made.settimeout(PATIENCE_S)
                return await loop.run_in_executor(None, made.recv, 65_536)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # the gateway's, which looks at timers first
        assert runner.run(ask_while_held_up()).startswith(b"HTTP/1.1 404 ")


async def test_refused_client_that_keeps_sending_is_disconnected(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_S", 0.2)
    running = await start(keys=("sk-0123456789abcdef",))
    reader, writer = await connect(running, HEAD + b"transfer-encoding: chunked\r\n\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.1 401 ")
    async with asyncio.timeout(PATIENCE_S):
        while not writer.is_closing():
            writer.write(b"1\r\n \r\n")
            await asyncio.sleep(0.02)


async def connect_slowly(running: Running) -> tuple[Pair, Connection]:
    """Return a connection with small buffers whose client reads nothing yet, and the gateway's end of it."""
    reader, writer = await connect(running, num_unread=1)
    await until_async(lambda: running.server.server_state.connections)
    (made,) = running.server.server_state.connections
    assert isinstance(made, Connection)
    made.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    writer.transport.pause_reading()
    return (reader, writer), made


def read_fast(writer: asyncio.StreamWriter, made: Connection) -> None:
    """Let the client read with normal buffers, because small ones would take seconds per answer."""
    for transport, option in ((writer.transport, socket.SO_RCVBUF), (made.transport, socket.SO_SNDBUF)):
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, option, 1 << 20)
    writer.transport.resume_reading()


async def until_unread(made: Connection) -> None:
    """Wait until an answer has been sent that the client does not read."""
    await until_async(lambda: made.cycle is not None and made.is_idle)
    assert made.transport.get_write_buffer_size()


async def test_excess_pipelined_requests_close_after_the_first_are_answered(start: Start) -> None:
    reader, writer = await connect(await start(keys=("sk-0123456789abcdef",)), LIVE * MAX_PIPELINED)
    async with asyncio.timeout(PATIENCE_S):
        for _ in range(MAX_PIPELINED):
            assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
    writer.write(LIVE * 100)
    *answers, last = (await read_all(reader)).split(b"HTTP/1.1 200 ")[1:]
    assert len(answers) == MAX_PIPELINED, "one that is answered, and those that wait, of whom one is the last"
    assert b"connection: close" in last
    assert not any(b"connection: close" in each for each in answers)
    writer.close()


@pytest.mark.parametrize(
    "data",
    [
        b"\0\r\n\r\n",
        b"GET /" + b"a" * 70_000,
        HEAD + b"transfer-encoding: chunked\r\n\r\nx\r\n",
        UPGRADE,
        LIVE * (MAX_PIPELINED + 2),
    ],
    ids=["none", "endless", "body", "upgrade", "crowd"],
)
async def test_invalid_data_does_not_interrupt_a_response(start: Start, data: bytes) -> None:
    goes_on = asyncio.Event()
    running = await start([SPOKEN[0], Until(goes_on), *SPOKEN[1:]])
    reader, writer = await connect(running, SPEECH)
    async with asyncio.timeout(PATIENCE_S):
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(data)
        async with running.http() as http:  # which is read after it
            assert (await http.get("/health/live")).status_code == 200
        goes_on.set()
        assert b" 200 " in head
        while size := int((await reader.readline()).strip(), 16):
            await reader.readexactly(size + 2)
        assert await reader.readline() == b"\r\n"
    assert (await read_all(reader)).count(b"HTTP/1.1 ") == (MAX_PIPELINED if data.startswith(LIVE) else 0)
    writer.close()


async def test_disconnect_cancels_the_request_despite_pipelined_ones(start: Start) -> None:
    running = await start([Until(asyncio.Event())])
    running.app.state.gateway.client.timeouts = Timeouts(600, 600, 600)
    _, writer = await connect(running, SPEECH + LIVE)
    async with asyncio.timeout(PATIENCE_S):
        while not running.behind.requests:
            await asyncio.sleep(0.005)
        writer.close()
        await running.behind.cancelled.wait()


@pytest.mark.slow
async def test_response_being_read_is_not_cut_off(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    running = await start()
    async with running.http() as http:
        whole = (await http.get("/openapi.json", headers={"connection": "close"})).content
    await until_async(lambda: not running.server.server_state.connections)
    (reader, writer), made = await connect_slowly(running)
    monkeypatch.setattr(connection, "HEAD_S", 0.0)
    writer.write(SCHEMA + b"connection: close\r\n\r\n")
    await until_unread(made)
    made._check(made.transport.get_write_buffer_size() + 1, num_checks=0)  # as if the client had read some of it
    read_fast(writer, made)
    assert (await read_all(reader)).endswith(b"\r\n\r\n" + whole)
    writer.close()


@pytest.mark.slow
async def test_client_that_stops_reading_is_disconnected(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "STALL_S", 0.1)
    running = await start()
    (_, writer), made = await connect_slowly(running)
    writer.write((SCHEMA + b"\r\n") * MAX_PIPELINED)
    state = running.server.server_state
    await until_async(lambda: made not in state.connections and not state.tasks)
    writer.close()


async def test_websocket_upgrade_is_refused_after_an_unread_response(start: Start) -> None:
    running = await start()
    (reader, writer), made = await connect_slowly(running)
    made.transport.set_write_buffer_limits(1)
    writer.write(SCHEMA + b"\r\n")
    await until_unread(made)
    writer.write(UPGRADE)
    await until_async(lambda: made.transport.is_closing())
    read_fast(writer, made)
    assert [part[:3] for part in (await read_all(reader)).split(b"HTTP/1.1 ")[1:]] == [b"200", b"400"]
    writer.close()
