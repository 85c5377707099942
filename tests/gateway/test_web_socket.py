"""WebSocket frames that are answered, counted, delayed, or too many."""

import asyncio
import socket
from types import SimpleNamespace
from typing import Any

import pytest
from websockets.frames import Frame, Opcode

from stretto_gateway import connection, socket_session
from stretto_gateway.config import Limits
from stretto_gateway.connection import MAX_CONTROL, MAX_SMALL, NUM_TINY, PART_BYTES, LimitedWebSocket
from stretto_gateway.socket_session import MAX_ERRORS, SessionEnd, _until_expired
from tests.gateway.conftest import Running, Start
from tests.gateway.realtime.test_bounds import closed, open_socket
from tests.patience import PATIENCE_S

STREAM = "/v1/audio/speech/stream"
PING = b"\x89\xfd\0\0\0\0" + b"x" * 125  # RFC 6455, section 5.2: with a mask that changes nothing


def frame(opcode: Opcode, data: bytes = b"", fin: bool = True) -> bytes:
    """Return a masked client frame."""
    return Frame(opcode, data, fin).serialize(mask=True)


def socket_of(running: Running) -> LimitedWebSocket:
    """Return the gateway's end of the only open WebSocket."""
    (made,) = (each for each in running.server.server_state.connections if isinstance(each, LimitedWebSocket))
    return made


async def until_parsed(made: LimitedWebSocket) -> None:
    """Wait until all received data has been parsed."""
    async with asyncio.timeout(PATIENCE_S):
        while made._unparsed:
            await asyncio.sleep(0)


@pytest.mark.slow
async def test_only_the_last_ping_is_answered_while_pongs_are_unread(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "MAX_CONTROL", 1_000_000)
    running = await start()
    narrow = socket.socket()
    narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    host, port = running.url.removeprefix("http://").split(":")
    narrow.connect((host, int(port)))  # which the system answers
    narrow.setblocking(False)
    options = {"sock": narrow, "ping_interval": None, "compression": None}
    async with asyncio.timeout(PATIENCE_S), open_socket(running, **options) as opened:
        made = socket_of(running)
        made.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        opened.transport.pause_reading()
        for _ in range(50):
            made.data_received(PING * 1000)
            await until_parsed(made)
        assert made.transport.get_write_buffer_size() < 2 * 1000 * len(PING)
        assert not made.writable.is_set()
        answered = await opened.ping(b"the last")
        async with running.http() as http:  # which is read after it
            assert (await http.get("/health/live")).status_code == 200
        assert not made.writable.is_set()
        opened.transport.resume_reading()
        assert await answered >= 0


@pytest.mark.parametrize(
    "again",
    [
        frame(Opcode.PING),
        frame(Opcode.PONG),
        frame(Opcode.PING, b"x" * 125),
        frame(Opcode.TEXT, fin=False) + frame(Opcode.CONT),
        frame(Opcode.TEXT, b"{", fin=False) + frame(Opcode.CONT, b"}"),
    ],
    ids=["pings", "pongs", "long pings", "empty fragments", "small fragments"],
)
async def test_pings_pongs_and_small_fragments_are_rate_limited(start: Start, again: bytes) -> None:
    async with open_socket(await start(), STREAM, ping_interval=None) as opened:
        opened.transport.write(again * 10 * MAX_CONTROL)
        told = f"at most {MAX_CONTROL} pings, pongs and small fragments are accepted per second"
        assert (await closed(opened)) == (1008, told)


async def test_legitimate_message_rates_keep_the_connection_open(start: Start) -> None:
    running = await start()
    async with open_socket(running, STREAM) as opened:
        opened.transport.write(frame(Opcode.PING) * (MAX_CONTROL // 2))
        await opened.send([" " * 2000] * 500)  # in large fragments
        await opened.send("{}")
        for _ in range(2):
            assert "error" in await opened.recv()


@pytest.mark.slow
async def test_other_connections_are_served_during_a_websocket_flood(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "MAX_CONTROL", 1_000_000)
    running = await start()
    async with open_socket(running, STREAM, ping_interval=None) as opened:
        made = socket_of(running)
        made.data_received(frame(Opcode.PONG) * 100_000)
        assert not made.transport.is_reading(), "nothing more is read before it is parsed"
        async with running.http() as http:
            assert (await http.get("/health/live")).status_code == 200
        assert made._unparsed, "the other connection had its turn before all of it was parsed"
        await until_parsed(made)
        assert made.transport.is_reading()
        await (await opened.ping())


async def test_excess_small_messages_wait_for_the_next_second(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket_session, "MAX_ERRORS", 1_000_000)
    running = await start()
    now = [0.0]
    async with open_socket(running, STREAM) as opened:
        made: Any = socket_of(running)
        made._small._loop = SimpleNamespace(time=lambda: now[0])  # which the test alone moves on
        made._small.ends_at = 0.0
        num = 4 * MAX_SMALL
        opened.transport.write(frame(Opcode.TEXT, b"{}") * num)
        num_answers = 0
        for second in range(3):
            async with asyncio.timeout(PATIENCE_S):
                while num_answers <= second * MAX_SMALL or not made._small.is_over:
                    await opened.recv()
                    num_answers += 1
            now[0] += 1
        async with asyncio.timeout(PATIENCE_S):
            while num_answers < num:
                assert "error" in await opened.recv()
                num_answers += 1


@pytest.mark.parametrize("path", [STREAM, "/v1/realtime"])
async def test_invalid_messages_are_rate_limited(start: Start, path: str) -> None:
    running = await start()
    async with open_socket(running, path, ping_interval=None) as opened:
        opened.transport.write(frame(Opcode.TEXT, b"{}") * 10 * MAX_ERRORS)
        assert await closed(opened) == (1008, f"more than {MAX_ERRORS} messages were invalid within a second")


async def test_single_byte_reads_are_coalesced(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "TINY_PER_S", 0.001)  # even reads on a slow machine count as fast
    monkeypatch.setattr(connection, "TINY_DELAY_S", 3600.0)
    running = await start()
    async with open_socket(running, STREAM, ping_interval=None, close_timeout=0.1) as opened:
        made, message = socket_of(running), frame(Opcode.TEXT, b" " * 200)
        for byte in message[: NUM_TINY - 2]:  # after the read of the upgrade
            made.data_received(bytes([byte]))
        assert made.transport.is_reading()
        made.data_received(message[NUM_TINY - 2 : NUM_TINY])
        assert not made.transport.is_reading()
        assert made._next is not None
        made._next.cancel()
        made._parse()  # as the timer does
        assert made.transport.is_reading()
        made.data_received(message[NUM_TINY:])
        made._parse_later()
        assert not made.transport.is_reading()
        made._next.cancel()
        made._parse()
        assert "error" in await opened.recv()


async def test_unreceived_messages_pause_parsing(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket_session, "MAX_ERRORS", 1_000_000)
    running = await start()
    async with open_socket(running, STREAM) as opened:
        made = socket_of(running)
        opened.transport.pause_reading()
        made.data_received(frame(Opcode.TEXT, b"{}") * 500)
        assert made.queue.qsize() <= PART_BYTES // len(frame(Opcode.TEXT, b"{}")) + 1
        assert made._unparsed
        opened.transport.resume_reading()
        for _ in range(500):
            await opened.recv()


class Speaking:
    """Session whose output is complete when the test says so."""

    def __init__(self) -> None:
        self.is_asked = asyncio.Event()
        self.is_complete = asyncio.Event()

    async def handle(self, message: str | bytes | None) -> None:
        """Handle no event."""

    async def complete(self) -> None:
        """Wait for the test."""
        self.is_asked.set()
        await self.is_complete.wait()


async def test_output_in_progress_is_completed_when_a_session_expires() -> None:
    session = Speaking()
    expiring = asyncio.create_task(_until_expired(Limits(session_s=0), session))
    async with asyncio.timeout(PATIENCE_S):
        await session.is_asked.wait()
        assert not expiring.done()
        session.is_complete.set()
        with pytest.raises(SessionEnd, match="maximum duration of 0 s"):
            await expiring


async def test_output_does_not_prolong_a_session_without_end() -> None:
    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(SessionEnd, match="maximum duration of 0 s"):
            await _until_expired(Limits(session_s=0, drain_s=0.01), Speaking())
