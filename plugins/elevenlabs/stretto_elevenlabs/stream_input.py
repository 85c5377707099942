"""WebSockets of ElevenLabs' API, which speak text that is still being written.

`stream-input` has one context, whose end closes the connection; `multi-stream-input` has several, with ids.
"""

import asyncio
import base64
import json
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from contextlib import closing as closed
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field
from starlette.websockets import WebSocket

from stretto_contract.limits import host_of
from stretto_elevenlabs.alignment import CharacterTimes, milliseconds
from stretto_elevenlabs.endpoints import Order, timed_chunks
from stretto_elevenlabs.errors import translated
from stretto_elevenlabs.fields import (
    USUAL_FORMAT,
    DictionaryLocators,
    Seed,
    VoiceSettings,
    ask_for_words,
    speaking,
    speech_item,
)
from stretto_gateway.admission import CALLER, EventPace
from stretto_gateway.answers import ApiError
from stretto_gateway.connection import POLICY
from stretto_gateway.events import closing
from stretto_gateway.fields import Ignored, Text, TextFields, validated
from stretto_gateway.gateway import Gateway
from stretto_gateway.guard import Keys
from stretto_gateway.routes import error_response
from stretto_gateway.socket_session import (
    DONE,
    RequestedEnd,
    SessionEnd,
    SocketChannel,
    attend,
    next_message,
    read_json,
    session_tasks,
)
from stretto_gateway.speech import voice_options
from stretto_gateway.speech_stream import IncomingText, asking

router = APIRouter()
MAX_CONTEXTS = 16  # open contexts of a connection
MAX_ID_CHARS = 200
FIRST_S = 10.0  # time within which the first message must arrive, because the caller may be unknown until then
UNKNOWN_KEY = "no valid key: expected the header xi-api-key, or xi_api_key in the first message"


class InputQuery(TextFields):
    """Query parameters of a connection. All others have no effect."""

    model_id: Text = ""
    language_code: Text | None = None
    output_format: Text = USUAL_FORMAT
    inactivity_timeout: float = Field(default=20.0, gt=0, le=180)
    seed: Seed = None


class InputMessage(DictionaryLocators):
    """Message of a client. `try_trigger_generation` and the configurations have no effect: speech never waits."""

    text: Text | None = None
    flush: bool = False
    voice_settings: VoiceSettings | None = None
    context_id: Annotated[Text, Field(max_length=MAX_ID_CHARS)] | None = None
    close_context: bool = False
    close_socket: bool = False
    xi_api_key: Text | None = None
    try_trigger_generation: bool = False
    generation_config: dict[str, Any] | None = None
    generator_config: dict[str, Any] | None = None


def read_message(message: str | bytes | None) -> InputMessage:
    """Parse a message; raise ApiError if it is invalid."""
    record = read_json(message)
    if "xi-api-key" in record:  # the field's name in the reference; examples use the other one
        record["xi_api_key"] = record.pop("xi-api-key")
    return validated(InputMessage, record)


class FlushedText(IncomingText):
    """Text of one utterance that is still being written, with the times of its characters.

    Attributes:
        is_flushed: True if the text is to be spoken without waiting for more.
    """

    is_flushed = False

    def __init__(self, gateway: Gateway):
        super().__init__(gateway.limits, gateway.sessions.held)
        self.characters = CharacterTimes()

    def add(self, piece: str) -> bool:
        is_added = super().add(piece)
        if is_added:
            self.characters.add(piece)
        return is_added


class Context:
    """Texts of a client's context, which are spoken one after the other.

    A flush ends the text that is being spoken. Text that follows is the next utterance. If that
    one is flushed before it begins, it is complete when it begins, unless text has been added after the flush.

    Attributes:
        speed: Speed of the utterances that begin from now on; None for the model's.
    """

    def __init__(self, gateway: Gateway):
        self._gateway = gateway
        self._texts = deque[FlushedText]()  # the one that is being spoken, and the next one
        self._is_closed = False
        self._changed = asyncio.Event()
        self.speed: float | None = None

    @property
    def is_reading(self) -> bool:
        """True while more text is expected."""
        return not self._is_closed and not (self._texts and self._texts[0].is_ended)

    def write(self, piece: str) -> None:
        """Append a piece of text, unless the context is closed."""
        begins = not self._texts or self._texts[-1].is_ended
        if self._is_closed or (begins and not piece.strip()):
            return
        if begins:
            self._texts.append(FlushedText(self._gateway))
            self._changed.set()
        self._texts[-1].add(piece)
        self._texts[-1].is_flushed &= not piece.strip()

    def flush(self) -> None:
        """Speak the text so far without waiting for more."""
        if self._texts:
            self._texts[-1].is_flushed = True
        if len(self._texts) == 1:
            self._texts[0].end()

    def close(self) -> None:
        """Mark the text as complete."""
        self._is_closed = True
        if self._texts:
            self._texts[-1].end()
        self._changed.set()

    async def run(self, speak: Callable[[FlushedText], Awaitable[None]]) -> None:
        """Speak all texts until the context is closed."""
        while self._texts or not self._is_closed:
            if not self._texts:
                self._changed.clear()
                await self._changed.wait()
                continue
            text = self._texts[0]
            if text.is_flushed:
                text.end()
            await speak(text)
            text.close()
            await text.ended()
            self._texts.popleft()

    def discard(self) -> None:
        """Release the memory of the texts."""
        for text in self._texts:
            text.close()


class InputChannel(SocketChannel):
    """Channel whose messages have ElevenLabs' form."""

    async def send_record(self, context_id: str | None, **fields: Any) -> None:
        """Send a message with the client's id of its context, which is None for the only context."""
        named = {} if context_id is None else {"contextId": context_id}
        await self._taken(self._socket.send_text(json.dumps(fields | named)))

    async def send_error(self, error: ApiError, event_id: str | None = None) -> None:
        """Send an error; `event_id` is the id of the context that has failed, or None for the connection."""
        self._count_error()
        named = translated(error)
        await self.send_record(event_id, message=named.message, error=named.code or "error", code=POLICY)


class InputSession:
    """Session of one connection."""

    def __init__(
        self,
        gateway: Gateway,
        channel: InputChannel,
        voice_id: str,
        query: InputQuery,
        owner: str,
        tasks: asyncio.TaskGroup,
        has_ids: bool,
    ):
        self._gateway = gateway
        self._channel = channel
        self._voice_id = voice_id
        self._query = query
        self._owner = owner
        self._tasks = tasks
        self._has_ids = has_ids
        self._contexts: dict[str | None, Context] = {}
        self._requested_end = RequestedEnd(self, tasks)
        self._running = set[asyncio.Task[None]]()

    @property
    def patience_s(self) -> float:
        """Maximum time until the next message, in seconds: `inactivity_timeout`, unless the client waits for audio."""
        is_waiting = any(not context.is_reading for context in self._contexts.values())
        return self._gateway.limits.session_s if is_waiting else self._query.inactivity_timeout

    async def handle(self, message: str | bytes | None) -> None:
        """Handle a message; raise ApiError, which ends the session, if it is invalid."""
        event = read_message(message)
        Ignored(event, self._gateway.strict)
        event.refuse_dictionaries()
        if event.close_socket:
            self._requested_end.ask()
            return
        context_id = (event.context_id or "") if self._has_ids else None
        is_end = event.close_context if self._has_ids else event.text == ""
        context = self._contexts.get(context_id)
        if context is None:
            if not event.text and (self._has_ids or not is_end):
                return  # keeps the connection open, or is for a context that has ended
            context = self._open(context_id)
        if event.voice_settings is not None:
            context.speed = event.voice_settings.speed
        context.write(event.text or "")
        if event.flush:
            context.flush()
        if is_end:
            context.close()

    def _open(self, context_id: str | None) -> Context:
        if len(self._contexts) >= MAX_CONTEXTS:
            message = f"context_id: expected at most {MAX_CONTEXTS} contexts that have not ended, got another one"
            raise ApiError(400, message, "context_id", "max_active_contexts")
        context = self._contexts[context_id] = Context(self._gateway)
        task = self._tasks.create_task(self._run(context_id, context))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return context

    async def _run(self, context_id: str | None, context: Context) -> None:
        """Speak the texts of a context. If contexts have no ids, its end ends the session."""

        async def speak(text: FlushedText) -> None:
            await self._speak(context_id, context.speed, text)

        try:
            await context.run(speak)
        except ApiError as error:
            if not self._has_ids:
                raise
            await self._channel.send_error(error, context_id)
        else:
            await self._channel.send_record(context_id, audio=None, isFinal=True)
        finally:
            del self._contexts[context_id]
            context.discard()
        if not self._has_ids:
            raise SessionEnd(DONE)

    async def _speak(self, context_id: str | None, speed: float | None, text: FlushedText) -> None:
        """Send the audio of a text, with the times of its characters."""
        query = self._query
        sent_ms = 0  # end of the alignments that have been sent
        with asking(self._owner, self._gateway.sessions.held) as state:
            gateway = await speaking(self._gateway, query.model_id)
            ignored = Ignored(query, is_strict=False)
            fields = {"input": "", "seed": query.seed, "language": query.language_code, "speed": speed}
            item = await speech_item(gateway, self._owner, self._voice_id, query.output_format, fields, ignored)
            options = await voice_options(gateway, item, state, ignored)
            await ask_for_words(gateway, options)
            order = Order(gateway, item, options, ignored)
            chunks = timed_chunks(order, text.pieces(), text.characters)
            async with closing(chunks):
                async for audio, times in chunks:
                    alignment = times.in_milliseconds(sent_ms)
                    await self._channel.send_record(
                        context_id,
                        audio=base64.b64encode(audio).decode(),
                        isFinal=None,
                        alignment=alignment,
                        normalizedAlignment=alignment,
                    )
                    if times.characters:
                        sent_ms = milliseconds(times.ends_s[-1])

    async def complete(self) -> None:
        """Take no further text, and wait until all contexts have ended."""
        for context in self._contexts.values():
            context.close()
        if self._running:
            await asyncio.wait(self._running)

    def close(self) -> None:
        """Release the memory of all contexts."""
        for context in self._contexts.values():
            context.discard()


@router.websocket("/v1/text-to-speech/{voice_id}/stream-input")
async def open_input(socket: WebSocket, voice_id: str) -> None:
    """Speak text while the client is still sending it."""
    await run(socket, voice_id, has_ids=False)


@router.websocket("/v1/text-to-speech/{voice_id}/multi-stream-input")
async def open_inputs(socket: WebSocket, voice_id: str) -> None:
    """Speak several texts while the client is still sending them."""
    await run(socket, voice_id, has_ids=True)


async def run(socket: WebSocket, voice_id: str, has_ids: bool) -> None:
    """Run a session until it ends."""
    gateway: Gateway = socket.app.state.gateway
    if not socket.state.has_key and socket.client is not None:
        CALLER.set(host_of(socket.client.host))  # clients without a key must not use up the sessions of others
    try:
        query = validated(InputQuery, dict(socket.query_params))
        with ExitStack() as slots:
            slots.enter_context(gateway.sessions.slot(socket.state.has_key))
            await socket.accept()
            channel = InputChannel(socket, gateway.limits.stall_s)
            async with session_tasks(channel) as tasks:
                owner = socket.state.owner
                first = None
                if not socket.state.has_key:
                    first, owner = await identified(gateway.sessions.pace, socket)
                    slots.close()
                    CALLER.set(owner)
                    slots.enter_context(gateway.sessions.slot())
                session = InputSession(gateway, channel, voice_id, query, owner, tasks, has_ids)
                with closed(session):
                    if first is not None:
                        await session.handle(first)
                    await attend(gateway, socket, session, tasks, lambda: session.patience_s)
    except ApiError as error:
        await socket.send_denial_response(error_response(socket.scope, error))


async def identified(pace: EventPace, socket: WebSocket) -> tuple[str, str]:
    """Return the first message, which must have a key, and the id of the caller."""
    keys: Keys = socket.state.keys
    try:
        async with asyncio.timeout(FIRST_S):
            text = await next_message(socket)
            await pace.wait(text)
    except TimeoutError:
        raise ApiError(408, f"text: expected the first message within {FIRST_S:g} s", "text", "timeout") from None
    authorization = f"Bearer {read_message(text).xi_api_key or ''}"
    if not keys.admit(authorization):
        raise ApiError(401, UNKNOWN_KEY, "xi_api_key", "invalid_api_key")
    return text, keys.owner(authorization)
