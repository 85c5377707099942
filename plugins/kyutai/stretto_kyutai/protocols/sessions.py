"""Sessions for Kyutai's protocols: channel, received audio, and session life cycle."""

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, closing

import numpy as np
from numpy.typing import NDArray
from starlette.websockets import WebSocket

from stretto_client import ModelProfile, Speech, SpeechEvent
from stretto_gateway.admission import Held
from stretto_gateway.answers import ApiError, mismatch
from stretto_gateway.catalogue import CallersVoices
from stretto_gateway.events import reply_events
from stretto_gateway.gateway import Gateway
from stretto_gateway.metrics import Trace
from stretto_gateway.model_server import Can
from stretto_gateway.ogg import OggError, OggOpusDecoder
from stretto_gateway.socket_session import DONE, SessionEnd, SocketChannel, attend, session_tasks
from stretto_gateway.voice_store import EVERYBODY
from stretto_kyutai.protocols.messages import malformed

ITEM_BYTES = 192  # memory of a waiting item without its content
MAX_MARKERS = 1024


class ReceivedAudio:
    """Unread audio from a client: Ogg Opus or samples, with markers in between.

    Ogg Opus is decoded only when it is read, because a small message may contain hours of audio.

    Attributes:
        num_samples: Number of samples that have been read.
        markers: Ids of the markers that were reached, with the number of samples before them.
    """

    def __init__(self, held: Held):
        self._held = held
        self._waiting = deque[bytes | NDArray[np.float32] | int]()
        self._changed = asyncio.Event()
        self._is_complete = False
        self._decoder = OggOpusDecoder()
        self.num_samples = self._num_markers = 0  # `_num_markers`: markers in `_waiting`
        self.markers = deque[tuple[int, int]]()

    def add(self, item: bytes | NDArray[np.float32] | int) -> None:
        """Append bytes of Ogg Opus, samples [n] at 24 kHz, or the id of a marker.

        Raises:
            ApiError: The memory limit is exceeded, or too many markers have not been answered.
        """
        if isinstance(item, int):
            if len(self.markers) + self._num_markers >= MAX_MARKERS:
                raise mismatch("id", f"fewer than {MAX_MARKERS} markers without an answer", "more")
        elif not len(item):
            return
        self._held.add(_num_bytes(item))
        self._num_markers += isinstance(item, int)
        self._waiting.append(item)
        self._changed.set()

    def end(self) -> None:
        """Mark the audio as complete."""
        self._is_complete = True
        self._changed.set()

    async def pieces(self) -> AsyncIterator[NDArray[np.float32]]:
        """Yield samples as they arrive, and none for a marker; raise SessionEnd if the audio is malformed."""
        while self._waiting or not self._is_complete:
            if not self._waiting:
                self._changed.clear()
                await self._changed.wait()
                continue
            item = self._waiting[0]
            async for pcm in self._samples_of(item):
                yield pcm
            if self._waiting:  # otherwise, `close` has discarded the item
                self._held.remove(_num_bytes(self._waiting.popleft()))

    async def _samples_of(self, item: bytes | NDArray[np.float32] | int) -> AsyncIterator[NDArray[np.float32]]:
        if isinstance(item, int):
            self._num_markers -= 1
            self.markers.append((self.num_samples, item))
            yield np.zeros(0, np.float32)
            return
        try:
            for pcm in self._decoder.push(item) if isinstance(item, bytes) else [item]:
                self.num_samples += len(pcm)
                yield pcm
                await asyncio.sleep(0)  # let other sessions run, even if the bytes contain hours of audio
        except OggError as error:
            raise malformed(ApiError(400, f"audio: {error}", "audio", "invalid_value")) from None

    def close(self) -> None:
        """Discard the waiting audio and markers."""
        self._held.remove(sum(map(_num_bytes, self._waiting)))
        self._waiting.clear()


def _num_bytes(item: bytes | NDArray[np.float32] | int) -> int:
    """Return the accounted memory of an item in bytes."""
    if isinstance(item, int):
        return ITEM_BYTES
    return ITEM_BYTES + (len(item) if isinstance(item, bytes) else item.nbytes)


class BinaryChannel(SocketChannel):
    """Channel whose error events are binary messages, which `write_error` returns for an error text."""

    def __init__(self, socket: WebSocket, stall_s: float, write_error: Callable[[str], bytes]):
        super().__init__(socket, stall_s)
        self._write_error = write_error

    async def send_error(self, error: ApiError, event_id: str | None = None) -> None:
        self._count_error()
        await self.send_bytes(self._write_error(error.message))


class KyutaiSession(ABC):
    """Session of one connection."""

    def __init__(self, gateway: Gateway, channel: SocketChannel, socket: WebSocket, tasks: asyncio.TaskGroup):
        self._gateway = gateway
        self._channel = channel
        self._socket = socket
        self._tasks = tasks
        self._voices = CallersVoices(gateway.voices, getattr(socket.state, "owner", EVERYBODY))
        self._task: asyncio.Task[None] | None = None  # generates the output

    @property
    def patience_s(self) -> float:
        """Maximum time until the next message, in seconds."""
        return self._gateway.limits.idle_s

    async def _select(self, *abilities: Can) -> ModelProfile:
        """Select the server, by the query parameter `model` if there is one, and return the profile of its model."""
        self._gateway = await self._gateway.for_model(self._socket.query_params.get("model", ""), *abilities)
        return await self._gateway.catalogue.profile()

    @abstractmethod
    async def begin(self) -> None:
        """Begin the session; raise ApiError if the model cannot serve it."""

    @abstractmethod
    async def handle(self, message: str | bytes | None) -> None:
        """Handle a message. As in Kyutai's servers, messages of unknown kinds have no effect."""

    async def complete(self) -> None:
        """Wait until the output is complete. Subclasses whose input never ends by itself end it first."""
        if self._task is not None:
            await asyncio.wait([self._task])

    @abstractmethod
    def close(self) -> None:
        """Release the session's memory."""


class ListeningSession(KyutaiSession):
    """Session with live audio as input."""

    def __init__(self, gateway: Gateway, channel: SocketChannel, socket: WebSocket, tasks: asyncio.TaskGroup):
        super().__init__(gateway, channel, socket, tasks)
        self._listen_anew()

    def _listen_anew(self) -> None:
        self._audio = ReceivedAudio(self._gateway.sessions.held)

    async def _follow(self, trace: Trace, start: Callable[[], Speech]) -> None:
        """Send messages for all events of the model's output, and end the session.

        `start`, which opens the session at the server, is called once the session has a slot.
        """
        async with self._gateway.slot(), aclosing(reply_events(start, {}, trace)) as events:
            async for event in events:
                await self._report(event)
        raise SessionEnd(DONE)

    @abstractmethod
    async def _report(self, event: SpeechEvent) -> None:
        """Send the messages for an event."""

    async def complete(self) -> None:
        self._audio.end()
        await super().complete()

    def close(self) -> None:
        self._audio.close()


Make = Callable[[Gateway, SocketChannel, WebSocket, asyncio.TaskGroup], KyutaiSession]


async def open_session(socket: WebSocket, make: Make, write_error: Callable[[str], bytes]) -> None:
    """Run a session until it ends.

    A rejection is sent as an error message, because these clients do not read HTTP errors.
    """
    gateway: Gateway = socket.app.state.gateway
    await socket.accept()
    channel = BinaryChannel(socket, gateway.limits.stall_s, write_error)
    async with session_tasks(channel) as tasks:
        with gateway.sessions.slot(), closing(make(gateway, channel, socket, tasks)) as session:
            await session.begin()
            await attend(gateway, socket, session, tasks, lambda: session.patience_s)
