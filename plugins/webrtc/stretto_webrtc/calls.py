"""Calls in progress. Each one is a realtime session in a task that outlives the request for the call."""

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

from stretto_gateway.admission import REQUEST
from stretto_gateway.answers import ApiError
from stretto_gateway.gateway import Gateway
from stretto_gateway.realtime.duplex import DuplexSession
from stretto_gateway.realtime.endpoints import run
from stretto_gateway.realtime.session import RealtimeSession
from stretto_gateway.realtime.settings import Settings
from stretto_gateway.socket_session import new_id
from stretto_webrtc.channel import TrackChannel, TrackSession
from stretto_webrtc.network import CallNetwork
from stretto_webrtc.peer import Peer

LOG = logging.getLogger("stretto_gateway")


@dataclass(frozen=True)
class Opening:
    """Request for a call. `offer` is a result of `read_offer`."""

    gateway: Gateway
    offer: str
    settings: Settings
    model: str
    owner: str


class WebRtcCall:
    """Call with its task, from the offer to the end."""

    def __init__(self, network: CallNetwork, opening: Opening):
        self.call_id = new_id("rtc")
        self.owner = opening.owner
        self._network = network
        self._gateway = opening.gateway
        self._opening = opening
        self._answered: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._peer: Peer | None = None
        # The task keeps the context of the request, so that limits count for its caller.
        self.task = asyncio.create_task(self._hold())

    async def answer(self) -> str:
        """Return the session description that answers the caller's; raise ApiError if the call fails."""
        either: list[asyncio.Future[Any]] = [self.task, self._answered]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not self._answered.done():
            self.task.result()  # raises the error
        return self._answered.result()

    def hang_up(self) -> None:
        if self._peer is not None:
            self._peer.hang_up()

    async def _hold(self) -> None:
        gateway = self._gateway
        opening = self._opening
        with gateway.sessions.slot():
            peer = self._peer = Peer(self._network, gateway.limits.max_event_bytes)
            try:
                self._answered.set_result(await peer.answer(opening.offer))
                await self._attend(peer)
            except TimeoutError:
                LOG.warning("%s: no connection within %g s", REQUEST.get().request_id, gateway.limits.stall_s)
            except Exception:
                if not self._answered.done():
                    raise
                LOG.exception("%s failed", REQUEST.get().request_id)
            finally:
                await asyncio.shield(peer.stop())

    async def _attend(self, peer: Peer) -> None:
        gateway = self._gateway
        opening = self._opening
        async with asyncio.timeout(gateway.limits.stall_s):
            await peer.wait_until_open()
        channel = TrackChannel(peer, gateway.limits.stall_s)

        def handler(session: RealtimeSession, tasks: asyncio.TaskGroup) -> TrackSession:
            tasks.create_task(channel.report_ends())
            peer.playout.is_live = isinstance(session, DuplexSession)
            return TrackSession(session, channel)

        await run(gateway, peer, channel, opening.settings, opening.model, opening.owner, handler)


class Calls:
    """Calls of a gateway, by id."""

    def __init__(self, gateway: Gateway, network: CallNetwork):
        self._gateway = gateway
        self._network = network
        self._calls: dict[str, WebRtcCall] = {}

    async def open(self, opening: Opening) -> tuple[str, str]:
        """Begin a call; return its id, and the session description that answers the caller's.

        Too many sessions of the caller, no free port or an invalid offer raise ApiError.
        """
        call = WebRtcCall(self._network, opening)
        self._calls[call.call_id] = call
        call.task.add_done_callback(lambda _: self._calls.pop(call.call_id))
        try:
            return call.call_id, await call.answer()
        except BaseException:
            call.task.cancel()
            raise

    def hang_up(self, call_id: str, owner: str) -> None:
        """End a call of this owner; raise ApiError 404 if there is none."""
        call = self._calls.get(call_id)
        if call is None or call.owner != owner:
            raise ApiError(404, f"call_id: expected the id of a call in progress, got {call_id[:100]!r}", "call_id")
        call.hang_up()

    async def close(self) -> None:
        """Wait for the calls that the gateway's shutdown is ending, then end those that remain."""
        tasks = [call.task for call in self._calls.values()]
        if tasks:
            await asyncio.wait(tasks, timeout=self._gateway.limits.drain_s)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
