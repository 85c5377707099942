"""`WS /v1/audio/speech/stream`: speech for streamed text, with the event names of vLLM-Omni."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import AbstractContextManager, aclosing, closing, contextmanager
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter
from pydantic import Field
from starlette.datastructures import State
from starlette.websockets import WebSocket

from stretto_gateway.admission import Held
from stretto_gateway.answers import ApiError, mismatch, refused
from stretto_gateway.catalogue import speaks
from stretto_gateway.config import Limits
from stretto_gateway.fields import IGNORED, Body, Ignored, Text, held_bytes, validated
from stretto_gateway.gateway import Gateway
from stretto_gateway.routes import Route
from stretto_gateway.socket_session import RequestedEnd, SocketChannel, attend, read_json, session_tasks
from stretto_gateway.speech import quality, timed_parts, voice_options, wants_alignment
from stretto_gateway.speech_request import SpeechFields


class IncomingText:
    """Text of one utterance that the client is still sending.

    The text's total length is limited, and so is the time from its first reading until it is complete. Unread text
    counts as held memory until `close`.
    """

    def __init__(self, limits: Limits, held: Held):
        self._limits = limits
        self._held = held
        self._num_chars = self._num_held = 0
        self._unread = ""
        self._is_closed = False
        self._failure: ApiError | None = None
        self._changed = asyncio.Event()
        self._ended = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_ended(self) -> bool:
        return self._ended.is_set()

    def add(self, piece: str) -> bool:
        """Append a piece of text; return False if it was dropped.

        If the text becomes too long or the memory limit is exceeded, this piece and all later ones are dropped, because
        a text with gaps would be wrong. `pieces` then raises the error.
        """
        if self._is_closed or self._failure is not None:
            return False
        try:
            self._num_chars += len(piece)
            if self._num_chars > self._limits.max_input_chars:
                expected = f"at most {self._limits.max_input_chars} characters in an utterance"
                raise mismatch("text", expected, f"{self._num_chars} characters")
            num_bytes = len(piece.encode())
            self._held.add(num_bytes)
        except ApiError as error:
            self._failure = error
        else:
            self._num_held += num_bytes
            self._unread += piece
        self._changed.set()
        return self._failure is None

    def _expire(self) -> None:
        """Fail at the time limit, because an incomplete text occupies a slot."""
        message = f"text: expected the complete text within {self._limits.writing_s:g} s of its start, got only a part"
        self._failure = self._failure or ApiError(408, message, "text", "timeout")
        self._changed.set()

    def end(self) -> None:
        """Mark the text as complete."""
        self._stop_timer()
        self._ended.set()
        self._changed.set()

    async def ended(self) -> None:
        """Wait until the text is complete."""
        await self._ended.wait()

    async def pieces(self) -> AsyncIterator[str]:
        """Yield pieces as they arrive; at the end, raise ApiError if part of the text was dropped."""
        if not self.is_ended:
            self._timer = asyncio.get_running_loop().call_later(self._limits.writing_s, self._expire)
        while True:
            await self._changed.wait()
            self._changed.clear()
            piece = self._unread
            self._unread = ""
            self._release(len(piece.encode()))
            if piece:
                yield piece
            if self._failure is not None:
                raise self._failure
            if self.is_ended and not self._unread:
                return

    def close(self) -> None:
        """Discard unread text, and ignore later pieces."""
        self._stop_timer()
        self._unread = ""
        self._is_closed = True
        self._release(self._num_held)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _release(self, num_bytes: int) -> None:
        self._held.remove(num_bytes)
        self._num_held -= num_bytes


router = APIRouter()
KINDS = ("session.config", "input.text", "input.done", "input.cancel", "session.close")
CANCELLED = "cancelled"  # finish reason


class SessionConfig(SpeechFields):
    """Client event with the settings for all utterances until the next event of this type."""

    type: Literal["session.config"]
    timestamps: bool = Field(default=False, description="events with the start time of each word")
    stream_audio: bool | None = Field(default=None, description="no effect: audio is always sent as it is generated")

    @property
    def num_bytes(self) -> int:
        """Memory of the settings in bytes, beyond a small amount that is always admitted."""
        return held_bytes(self.options) + len(self.ref_audio or "")


class InputText(Body):
    """Client event with the next piece of the text to speak."""

    type: Literal["input.text"]
    text: Text


class Signal(Body):
    """Client event that has no fields except its type."""

    type: Annotated[str, Field(max_length=32)]


Event = TypeVar("Event", InputText, Signal)


@router.websocket("/v1/audio/speech/stream")
async def open_stream(socket: WebSocket) -> None:
    """Speak text while the client is still sending it."""
    gateway: Gateway = socket.app.state.gateway
    try:
        with gateway.sessions.slot():
            await socket.accept()
            await run(gateway, socket)
    except ApiError as error:
        await socket.send_denial_response(error.response())


async def run(gateway: Gateway, socket: WebSocket) -> None:
    """Run the session until it ends."""
    limits = gateway.limits
    channel = StreamChannel(socket, limits.stall_s)
    async with session_tasks(channel) as tasks:
        with closing(StreamSession(gateway, channel, socket.state.owner, tasks)) as session:
            # An incomplete text occupies a slot, and its request waits on the server.
            await attend(gateway, socket, session, tasks, lambda: limits.stall_s if session.is_open else limits.idle_s)


@contextmanager
def asking(owner: str, held: Held) -> Iterator[State]:
    """Yield a state for one utterance, like that of an HTTP request; then release the utterance's memory."""
    kept = list[int]()

    def keep(num_bytes: int) -> None:
        held.add(num_bytes)
        kept.append(num_bytes)

    try:
        yield State({"owner": owner, "keep": keep})
    finally:
        held.remove(sum(kept))


class StreamChannel(SocketChannel):
    """Channel whose error events also have a top-level `message`, as expected by vLLM-Omni clients."""

    async def send_error(self, error: ApiError, event_id: str | None = None, **fields: Any) -> None:
        self._count_error()
        await self.send("error", message=error.message, **error.record(), **fields)


class StreamSession:
    """Session of one connection, which speaks one utterance at a time."""

    def __init__(self, gateway: Gateway, channel: StreamChannel, owner: str, tasks: asyncio.TaskGroup):
        self._gateway = gateway
        self._channel = channel
        self._owner = owner
        self._tasks = tasks
        self._config: SessionConfig | None = None
        self._num_utterances = 0
        self._text: IncomingText | None = None
        self._task: asyncio.Task[None] | None = None
        self._speaking: asyncio.Timeout | None = None  # without a limit; entered while audio is generated
        self._requested_end = RequestedEnd(self, tasks)

    @property
    def is_open(self) -> bool:
        """True if the text of the current utterance is not complete."""
        return self._text is not None and not self._text.is_ended

    @property
    def _is_speaking(self) -> bool:
        return self._task is not None and not self._task.done()

    def _asking(self) -> AbstractContextManager[State]:
        return asking(self._owner, self._gateway.sessions.held)

    async def handle(self, message: str | bytes | None) -> None:
        try:
            record = read_json(message)
            match record.get("type"):
                case "session.config":
                    await self._configure(validated(SessionConfig, record))
                case "input.text":
                    self._write(self._read(InputText, record).text)
                case "input.done":
                    self._read(Signal, record)
                    await self._end_text()
                case "input.cancel":
                    self._read(Signal, record)
                    await self._cancel()
                case "session.close":
                    self._read(Signal, record)
                    self._end()
                case kind:
                    raise refused("type", f"one of {', '.join(KINDS)}", kind)
        except ApiError as error:
            await self._channel.send_error(error)

    def _read(self, model: type[Event], record: dict[str, Any]) -> Event:
        """Return the event in `record`; raise ApiError for an invalid field or, with `--strict`, an unknown one."""
        event = validated(model, record)
        Ignored(event, self._gateway.strict)
        return event

    def _ignored(self, config: SessionConfig) -> Ignored:
        """Return the configuration fields without effect; with `--strict`, raise ApiError for them."""
        ignored = Ignored(config, self._gateway.strict)
        if config.stream_audio is False:
            ignored.add("stream_audio", "true or no value (audio is always sent as it is generated)", False)
        if config.cache:
            ignored.add("cache", "false or no value (the speech of streamed text is not cached)", config.cache)
        return ignored

    async def complete(self) -> None:
        if self._task is not None:
            await asyncio.wait([self._task])

    def close(self) -> None:
        """Discard the text and the settings, and release their memory."""
        if self._text is not None:
            self._text.close()
        self._keep(None)

    async def _configure(self, config: SessionConfig) -> None:
        self._expect_silence("session.config")
        gateway = await self._gateway.for_model(config.model, speaks)
        with self._asking() as state:
            await voice_options(gateway, config, state, self._ignored(config))
        self._keep(config)

    def _keep(self, config: SessionConfig | None) -> None:
        """Replace the settings; raise ApiError if old and new settings together exceed the memory limit."""
        held = self._gateway.sessions.held
        held.add(config.num_bytes if config is not None else 0)
        held.remove(self._config.num_bytes if self._config is not None else 0)
        self._config = config

    def _write(self, piece: str) -> None:
        if not self.is_open:
            self._expect_silence("input.text")
            config = self._configured()
            if self._requested_end.is_asked or not piece:
                return
            self._text = IncomingText(self._gateway.limits, self._gateway.sessions.held)
            self._task = self._tasks.create_task(self._speak(config, self._text, self._num_utterances))
            self._num_utterances += 1
        assert self._text is not None
        self._text.add(piece)

    async def _end_text(self) -> None:
        if self._text is not None and self.is_open:
            self._text.end()
            return
        self._expect_silence("input.done")
        self._configured()
        index = self._num_utterances
        self._num_utterances = self._num_utterances + 1
        await self._channel.send("session.done", utterance_index=index, total_sentences=0)

    async def _cancel(self) -> None:
        """Stop the utterance in progress; do nothing if it ended while the client's event was in transit."""
        await asyncio.sleep(0)  # if the utterance has just begun, its task is running by now
        if self._text is not None:
            self._text.end()
        if self._speaking is not None:
            self._speaking.reschedule(0)
            self._speaking = None  # it can be ended only once

    def _end(self) -> None:
        if self._text is not None:
            self._text.end()
        self._requested_end.ask()

    def _configured(self) -> SessionConfig:
        if self._config is None:
            raise mismatch("type", "session.config as the first message", "another message")
        return self._config

    def _expect_silence(self, event_type: str) -> None:
        if self._is_speaking:
            message = f"type: {event_type} must wait for the session.done of the previous utterance"
            raise ApiError(400, message, "type", "utterance_in_progress")

    async def _speak(self, config: SessionConfig, text: IncomingText, index: int) -> None:
        """Generate one utterance and send its events; if it fails, ignore the rest of its text."""
        fields = {"utterance_index": index, "sentence_index": 0}
        num_bytes = 0
        is_complete = False
        ignored = self._ignored(config)
        report = dict[str, Any]()
        end = dict[str, Any]()
        try:
            parts = self._parts(config, text, ignored, report)
            async with asyncio.timeout(None) as self._speaking, aclosing(parts):
                async for piece in parts:
                    if isinstance(piece, list):
                        await self._channel.send("audio.words", **fields, words=piece)
                        continue
                    if not num_bytes:
                        form = {"format": config.response_format, "sample_rate": config.rate}
                        names = {IGNORED: ignored.names} if ignored.names else {}
                        await self._channel.send("audio.start", **fields, sentence_text="", **form, **names)
                    num_bytes += len(piece)
                    await self._channel.send_bytes(piece)
            is_complete = True
        except TimeoutError:
            end = {"finish_reason": CANCELLED}
        except ApiError as error:
            self._speaking = None  # the utterance is over while the error is being sent
            await self._channel.send_error(error, utterance_index=index)
        finally:
            self._speaking = None
            text.close()
        if num_bytes:
            await self._channel.send("audio.done", **fields, total_bytes=num_bytes, error=not is_complete)
        await text.ended()
        tags = [name for name in ignored.names if name.startswith("input.")]
        notes = quality(report) | end | ({IGNORED: tags} if tags else {})
        await self._channel.send("session.done", utterance_index=index, total_sentences=1, **notes)

    async def _parts(
        self, config: SessionConfig, text: IncomingText, ignored: Ignored, report: dict[str, Any]
    ) -> AsyncGenerator[bytes | list[dict[str, Any]], None]:
        """Yield the file of one utterance, in parts, and its words if they were requested."""
        with self._asking() as state:
            gateway = await self._gateway.for_model(config.model, speaks)
            options = await voice_options(gateway, config, state, ignored)
            if config.timestamps and wants_alignment(await gateway.catalogue.profile()):
                options["words"] = "aligned"
            async with aclosing(timed_parts(gateway, config, text.pieces(), options, ignored, report)) as parts:
                async for piece in parts:
                    if config.timestamps or isinstance(piece, bytes):
                        yield piece


class SpeechStreamRoute(Route):
    """Speech for text that is still being written, over a WebSocket."""

    position = 20
    about = "/v1/audio/speech/stream, which speaks text while it is being written"
    router = router


ROUTE = SpeechStreamRoute()
