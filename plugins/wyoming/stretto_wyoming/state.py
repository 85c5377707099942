"""Settings and listening port of the route, and its sessions."""

import asyncio
import logging
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address

from stretto_contract.limits import host_of
from stretto_contract.listening import listen, place
from stretto_gateway.admission import CALLER, REQUEST, RequestHead
from stretto_gateway.answers import ApiError
from stretto_gateway.gateway import Gateway
from stretto_gateway.routes import RouteSettings, RouteState
from stretto_gateway.socket_session import SessionEnd, attend, session_tasks
from stretto_wyoming.discovery import Close, announce
from stretto_wyoming.events import MAX_LINE_BYTES, WyomingChannel, WyomingSocket
from stretto_wyoming.session import WyomingSession

LOG = logging.getLogger("stretto_gateway")


@dataclass(frozen=True)
class WyomingOptions(RouteSettings):
    """Address and port for Wyoming's clients.

    Attributes:
        wyoming_address: IP address to listen on; empty to listen nowhere.
        wyoming_port: TCP port; 0 for any.
    """

    wyoming_address: str = ""
    wyoming_port: int = 0

    @property
    def files_per_session(self) -> int:
        """Number of open files of a session besides those of HTTP connections: its own TCP connection."""
        return 1 if self.wyoming_address else 0


class WyomingState(RouteState):
    """The listening port, and the sessions of its clients. `port` is None if the gateway does not listen."""

    def __init__(self, gateway: Gateway):
        self._gateway = gateway
        self.port: int | None = None
        self._server: asyncio.Server | None = None
        self._announced: Close | None = None
        self._sessions = set[asyncio.Task[None]]()

    async def start(self) -> None:
        """Listen, and announce the port unless only this host can reach it; raise OSError if the port is taken."""
        options = self._gateway.config.of_route(WyomingOptions)
        address = options.wyoming_address
        if not address:
            return
        backlog = self._gateway.limits.max_sessions
        listener = listen(address, options.wyoming_port, backlog)
        self.port = listener.getsockname()[1]
        self._server = await asyncio.start_server(self._serve, sock=listener, limit=MAX_LINE_BYTES, backlog=backlog)
        who = "it has no authentication, so everyone who can reach it may use it"
        LOG.info("Wyoming at tcp://%s; %s", place(address, self.port), who)
        if not ip_address(address).is_loopback:
            self._announced = await announce(address, self.port)

    async def close(self) -> None:
        """Wait for the sessions that the gateway's shutdown is ending, then end those that remain."""
        if self._announced is not None:
            await self._announced()
        if self._server is not None:
            self._server.close()
        if self._sessions:
            await asyncio.wait(self._sessions, timeout=self._gateway.limits.drain_s)
        for task in self._sessions:
            task.cancel()
        if self._sessions:
            await asyncio.wait(self._sessions)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a client until it leaves, and log its session."""
        task = asyncio.current_task()
        assert task is not None, "asyncio runs it as a task"
        self._sessions.add(task)
        task.add_done_callback(self._sessions.discard)
        begun_s = time.monotonic()
        request_id = f"req_{secrets.token_hex(12)}"
        REQUEST.set(RequestHead(request_id))
        try:
            peer = writer.get_extra_info("peername") or [""]  # none if the client has left already
            CALLER.set(host_of(peer[0]))
            await self._converse(reader, writer)
        except asyncio.CancelledError:  # by `close`; asyncio would log it as an error
            pass
        except Exception as error:
            LOG.error("%s failed", request_id, exc_info=error)
        finally:
            if writer.transport.get_write_buffer_size():  # the client does not read
                writer.transport.abort()
            writer.close()
            LOG.info("%s WYOMING %.0f ms", request_id, 1000 * (time.monotonic() - begun_s))

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        gateway = self._gateway
        socket = WyomingSocket(reader, writer, gateway.limits.max_event_bytes, gateway.sessions.pace)
        channel = WyomingChannel(socket, gateway.limits.stall_s)
        try:
            with gateway.sessions.slot():
                async with session_tasks(channel) as tasks:
                    session = WyomingSession(gateway, channel, tasks)
                    await attend(gateway, socket, session, tasks, lambda: session.patience_s)
        except ApiError as error:
            with suppress(SessionEnd):
                await channel.send_error(error)
