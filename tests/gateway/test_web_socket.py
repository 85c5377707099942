"""A WebSocket's messages of control."""

import asyncio
import socket

from stretto_gateway.web_socket import Socket
from tests.gateway.conftest import Start
from tests.gateway.realtime.test_bounds import open_socket

PING = b"\x89\xfd\0\0\0\0" + b"x" * 125  # RFC 6455, section 5.2: with a mask that changes nothing


async def test_of_pings_whose_answers_nobody_takes_the_last_is_answered(start: Start) -> None:
    running = await start()
    narrow = socket.socket()
    narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    host, port = running.url.removeprefix("http://").split(":")
    narrow.connect((host, int(port)))  # which the system answers
    narrow.setblocking(False)
    options = {"sock": narrow, "ping_interval": None, "compression": None}
    async with asyncio.timeout(60), open_socket(running, **options) as opened:
        (made,) = (each for each in running.server.server_state.connections if isinstance(each, Socket))
        made.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        opened.transport.pause_reading()
        for _ in range(50):
            made.data_received(PING * 1000)
        assert made.transport.get_write_buffer_size() < 2 * 1000 * len(PING)
        assert not made.writable.is_set()
        answered = await opened.ping(b"the last")
        async with running.http() as http:  # which is read after it
            assert (await http.get("/health/live")).status_code == 200
        assert not made.writable.is_set()
        opened.transport.resume_reading()
        assert await answered >= 0
