"""Conversation of a realtime session: its items, their transcripts, and at most one reply at a time."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stretto_client import ModelProfile, TranscriptionOptions
from stretto_client.tries import Begin
from stretto_contract.finish_reasons import limit_of
from stretto_gateway.admission import Held, KeptAudio
from stretto_gateway.answers import ApiError, error_path, mismatch, refused
from stretto_gateway.base64_data import DATA_URL, read_base64
from stretto_gateway.catalogue import CallersVoices, find_task
from stretto_gateway.chat import given
from stretto_gateway.encoding import DEFAULT_RATE, wav_header
from stretto_gateway.events import closing, text_events
from stretto_gateway.gateway import Gateway
from stretto_gateway.metrics import Trace
from stretto_gateway.realtime import events as client
from stretto_gateway.realtime.audio_input import milliseconds, samples
from stretto_gateway.realtime.channel import Channel
from stretto_gateway.realtime.conversation import Conversation, Item, ItemPart
from stretto_gateway.realtime.reply import Reply, make_order
from stretto_gateway.realtime.settings import FINISH_REASON, Format, RealtimeSettings, Transcription, ignoring
from stretto_gateway.realtime.wire_audio import written_recording
from stretto_gateway.speech import usage
from stretto_gateway.transcription import language_hint

MAX_WAITING = 16  # recordings per session
NAME = "conversation.item.input_audio_transcription"


class LiveTurn:
    """Audio of a turn that is transcribed while the user speaks.

    Args:
        item: Item of the turn, which contains the samples once it has been committed.
    """

    def __init__(self, item: Item, held: Held):
        self.item = item
        self._held = held
        self._num_bytes = 0
        self._pieces: asyncio.Queue[bytes] = asyncio.Queue()
        self.task: asyncio.Task[None] | None = None  # None if there is no memory for the first samples

    @property
    def has_ended(self) -> bool:
        """True if the transcription has failed and the failure has been reported."""
        return self.task is None or self.task.done()

    def start(self, task: asyncio.Task[None]) -> None:
        """Set the task that transcribes the turn."""
        self.task = task
        task.add_done_callback(lambda _: self._release(self._num_bytes))

    def add(self, pcm: bytes) -> None:
        """Append samples, pcm16 at 24 kHz; if there are none, end the turn. Raise ApiError at the memory limit."""
        self._held.add(len(pcm))
        self._num_bytes += len(pcm)
        self._pieces.put_nowait(pcm)

    async def pieces(self) -> AsyncIterator[NDArray[Any]]:
        """Yield the samples as they arrive, int16 [n], and release their memory."""
        while pcm := await self._pieces.get():
            self._release(len(pcm))
            yield np.frombuffer(pcm, "<i2")

    def _release(self, num_bytes: int) -> None:
        self._held.remove(num_bytes)
        self._num_bytes -= num_bytes


class Transcriber:
    """Background transcription of items, which sends an event for each piece of text.

    With a model that transcribes live audio, the transcription of a turn begins with its first samples.
    """

    def __init__(self, gateway: Gateway, channel: Channel):
        self._gateway = gateway
        self._channel = channel
        self.catalogue = gateway.catalogue
        self._turn = asyncio.Lock()
        self._running: set[asyncio.Task[None]] = set()
        self._live: LiveTurn | None = None
        self._settings = Transcription()

    def configure(self, settings: Transcription | None) -> bool:
        """Apply the session's settings, None for no transcripts; return True if turns are transcribed while spoken."""
        self._settings = settings or Transcription()
        profile = self.catalogue.known
        return settings is not None and profile is not None and profile.transcribes_live

    @property
    def can_transcribe(self) -> bool:
        """True if the turn in progress is being transcribed, or its transcription can begin."""
        return self._live is not None or len(self._running) < MAX_WAITING

    def transcribe_samples(self, item_id: str, pcm: bytes, tasks: asyncio.TaskGroup) -> None:
        """Transcribe the next samples, pcm16 at 24 kHz, of the turn in progress, which will be item `item_id`.

        ApiError is raised if the memory limit is exceeded.
        """
        if not pcm:
            return
        if self._live is None:
            item = Item("user", [ItemPart("input_audio", None)], item_id)
            live = LiveTurn(item, self._gateway.sessions.held)
            self._live = live
            live.add(pcm)
            task = tasks.create_task(self._run(live.item, live))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
            live.start(task)
        elif not self._live.has_ended:
            self._live.add(pcm)

    async def fail(self, error: ApiError) -> None:
        """End the transcription of the turn in progress with an error; ignore its remaining samples."""
        live = self._live
        if live is not None:
            if live.task is not None:
                live.task.cancel()
            live.task = None
            await self._fail(live.item, error)

    def drop(self) -> bool:
        """Cancel the transcription of the turn in progress; return True if there was one."""
        live = self._live
        self._live = None
        if live is not None and live.task is not None:
            live.task.cancel()
        return live is not None

    async def begin(self, item: Item, tasks: asyncio.TaskGroup) -> None:
        """Transcribe an item in the background; raise ApiError if the memory limit is exceeded."""
        live = self._live
        self._live = None
        if live is not None:
            live.item.parts = item.parts  # the transcript is written to these parts
            live.add(b"")
            return
        if len(self._running) >= MAX_WAITING:
            error = ApiError(
                429,
                f"{MAX_WAITING} recordings are waiting already; try again",
                code="rate_limit_exceeded",
            )
            await self._fail(item, error)
            return
        held = self._gateway.sessions.held
        num_bytes = len(item.parts[0].pcm)
        held.add(num_bytes)  # counted separately from the conversation, from which the item may be deleted
        task = tasks.create_task(self._run(item))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        task.add_done_callback(lambda _: held.remove(num_bytes))

    async def complete(self) -> None:
        """Wait until all transcripts are complete."""
        if self._running:
            await asyncio.wait(self._running)

    async def _run(self, item: Item, live: LiveTurn | None = None) -> None:
        try:
            async with self._turn:
                await self._write(item, live)
        except ApiError as error:
            await self._fail(item, error)

    async def _write(self, item: Item, live: LiveTurn | None) -> None:
        profile = await self._gateway.catalogue.profile()
        task = find_task(profile, ("asr",), "transcription")
        pcm = item.parts[0].pcm
        text = ""
        report = dict[str, Any]()
        trace = Trace(self._gateway.metrics, task.name)
        queue = None if live else self._gateway.queue
        with KeptAudio(self._gateway.sessions.held, profile) as kept:
            pieces = None if live is None else kept.counted(live.pieces())
            begin = self._transcription(pcm, pieces, profile)
            async with self._gateway.slot(), closing(text_events(begin, {}, trace, queue)) as events:
                async for event in events:
                    report = event.report or report
                    text += event.text
                    if event.text:
                        await self._send_event(item, "delta", delta=event.text)
        item.parts[0].text = text.strip()
        counts = {"type": "tokens"} | usage(report)
        limit = limit_of(report)
        reason = {} if limit is None else {FINISH_REASON: limit}
        await self._send_event(item, "completed", transcript=text.strip(), usage=counts, **reason)

    def _transcription(self, pcm: bytes, pieces: AsyncIterator[NDArray[Any]] | None, profile: ModelProfile) -> Begin:
        """Return the function that sends a turn to the server: `pieces` while it is spoken, or else all of `pcm`."""
        client = self._gateway.client
        language = language_hint(profile, self._settings.language)
        options: TranscriptionOptions = {"system": self._settings.prompt or ""}
        if language:
            options["language"] = language
        if pieces is not None:
            return partial(client.transcribe_live, pieces, DEFAULT_RATE, **options)
        return partial(client.transcribe, wav_header(DEFAULT_RATE, len(pcm)) + pcm, **options)

    async def _fail(self, item: Item, error: ApiError) -> None:
        await self._send_event(item, "failed", error=error.record()["error"])

    async def _send_event(self, item: Item, what: str, **fields: Any) -> None:
        await self._channel.send(f"{NAME}.{what}", item_id=item.item_id, content_index=0, **fields)


KINDS = {
    "user": ("input_text", "input_audio", "input_image"),
    "assistant": ("output_text", "output_audio", "text"),
    "system": ("input_text",),
}


class Talk:
    """A session's conversation. It sends an event for each change and generates replies in `tasks`."""

    def __init__(self, gateway: Gateway, channel: Channel, tasks: asyncio.TaskGroup, voices: CallersVoices):
        self._gateway = gateway
        self._channel = channel
        self._tasks = tasks
        self._voices = voices
        limits = gateway.limits
        self._conversation = Conversation(limits.max_items, limits.max_body_bytes, gateway.sessions.held)
        self._reply: Reply | None = None

    @property
    def is_empty(self) -> bool:
        return not self._conversation.items

    def close(self) -> None:
        """Remove all items."""
        self._conversation.clear()

    async def complete(self) -> None:
        """Wait until the reply in progress is complete."""
        if self._reply is not None and self._reply.task is not None:
            await asyncio.wait([self._reply.task])

    def add(self, item: Item, behind: str | None = None) -> str | None:
        """Insert an item as `Conversation.add` does; the caller must then call `announce`."""
        return self._conversation.add(item, behind)

    async def announce(self, item: Item, before: str | None, ignored: Sequence[ApiError] = ()) -> None:
        """Send the events of a new item, and delete old items that exceed the limits.

        Args:
            before: Id of the item before it; None if there is none.
            ignored: Errors of fields without effect in the client's event.
        """
        fields = {"item": item.record(), "previous_item_id": before}
        await self._channel.send("conversation.item.added", **fields, **ignoring(ignored))
        await self._channel.send("conversation.item.done", **fields)
        for old in self._conversation.surplus():
            self._conversation.remove(old)
            await self._channel.send("conversation.item.deleted", item_id=old.item_id)

    async def create(self, event: client.ItemCreate, form: Format) -> None:
        """Insert an item sent by the client, with audio in the format `form`.

        System items are moved to the beginning of each request to the server.
        """
        item = read_item(event.item, "item", form)
        before = self._conversation.add(item, event.previous_item_id)
        await self.announce(item, before, event.ignored)

    async def truncate(self, event: client.ItemTruncate) -> None:
        """Handle `conversation.item.truncate`: keep only the part of a spoken reply that was played."""
        item = self._conversation.find(event.item_id)
        if item.role != "assistant" or not item.num_samples:
            raise refused("item_id", "the id of an item with the model's speech", event.item_id)
        if event.audio_end_ms > milliseconds(item.num_samples):
            expected = f"at most {milliseconds(item.num_samples)} ms, the duration of the reply's audio"
            raise mismatch("audio_end_ms", expected, f"{event.audio_end_ms} ms")
        await self._cut(item, samples(event.audio_end_ms))

    async def delete(self, event: client.ItemEvent) -> None:
        """Remove an item."""
        self._conversation.remove(self._conversation.find(event.item_id))
        await self._channel.send("conversation.item.deleted", item_id=event.item_id)

    async def retrieve(self, event: client.ItemEvent, form: Format) -> None:
        """Send an item, including the user's audio in the format `form`."""
        try:
            item = self._conversation.find(event.item_id)
        except ApiError as error:
            raise ApiError(400, error.message, error.param, "item_retrieve_invalid_item_id") from None
        record = item.record(lambda pcm: written_recording(form, pcm))
        await self._channel.send("conversation.item.retrieved", item=record)

    async def answer(self, settings: RealtimeSettings, event: client.ResponseCreate) -> None:
        """Start a reply; raise ApiError if the model or the gateway cannot generate it."""
        if self._reply is not None and self._reply.is_running:
            message = f"response: {self._reply.response_id} is not complete; cancel it, or wait for its end"
            raise ApiError(400, message, "response", "conversation_already_has_active_response")
        if self._gateway.sessions.draining.is_set():
            raise ApiError(503, "the gateway is shutting down", code="unavailable")
        with error_path("session"):
            profile = await self._gateway.catalogue.model(settings.model)
        with self._asked(event.response, settings.audio.input.format) as conversation:
            order = await make_order(profile, settings, event, conversation, self._voices, self._gateway.strict)
        self._reply = Reply(self._gateway, self._channel, self._conversation, order)
        await self._reply.begin(self._tasks)

    async def replace(self, make: Callable[[Conversation], Reply]) -> None:
        """Cancel the reply in progress, and start the reply that `make` creates for the conversation."""
        await self.interrupt()
        self._reply = make(self._conversation)
        await self._reply.begin(self._tasks)

    @contextmanager
    def _asked(self, fields: client.ReplyFields, form: Format) -> Iterator[Conversation]:
        """Yield the conversation to answer: the session's, or a new one with the items in `input`."""
        if fields.input is None:
            yield self._conversation
            return
        limits = self._gateway.limits
        path = "response.input"
        conversation = Conversation(limits.max_items, limits.max_body_bytes, self._gateway.sessions.held)
        try:
            for index, item in enumerate(fields.input):
                if isinstance(item, client.ItemFields):
                    conversation.add(read_item(item, f"{path}.{index}", form))
                    continue
                with error_path(f"{path}.{index}"):
                    conversation.add(copy(self._conversation.find(item.id)))
            yield conversation
        finally:
            conversation.clear()

    async def cancel(self, event: client.ResponseCancel) -> None:
        """Cancel the reply in progress."""
        reply = self._reply
        if reply is None or not reply.is_running or event.response_id not in (None, reply.response_id):
            message = "Cancellation failed, because no such reply is in progress"  # LiveKit recognises the beginning
            raise ApiError(400, message, "response_id", "response_cancel_not_active")
        await reply.cancel("client_cancelled")

    async def interrupt(self) -> None:
        """Cancel the reply because the user is speaking, and truncate its item to the part that was played."""
        reply = self._reply
        if reply is None:
            return
        num_samples = reply.played_samples()
        if reply.is_running:
            await reply.cancel("turn_detected")
        self._reply = None
        if reply.item in self._conversation.items and num_samples < reply.item.num_samples:
            self._gateway.metrics.interrupted.inc()
            await self._cut(reply.item, num_samples)

    async def _cut(self, item: Item, num_samples: int) -> None:
        item.cut(num_samples)
        fields = {"item_id": item.item_id, "content_index": 0}
        await self._channel.send("conversation.item.truncated", audio_end_ms=milliseconds(num_samples), **fields)


def read_item(fields: client.ItemFields, name: str, form: Format) -> Item:
    """Return the item in `fields`, whose path is `name`; raise ApiError if a part is invalid."""
    parts = []
    for index, content_part in enumerate(fields.content):
        path = f"{name}.content.{index}"
        if content_part.type not in KINDS[fields.role]:
            raise refused(
                f"{path}.type", f"{' or '.join(KINDS[fields.role])} in a {fields.role} message", content_part.type
            )
        if content_part.type == "input_audio":
            pcm = client.read_pcm(content_part.audio, f"{path}.audio", form)
            if not pcm:
                raise mismatch(f"{path}.audio", "at least one sample", "none")
            parts.append(ItemPart("input_audio", content_part.transcript, pcm))
        elif content_part.type == "input_image":
            url = given(content_part.image_url, f"{path}.image_url")
            image = read_base64(f"{path}.image_url", url, DATA_URL)
            head = url[: url.find(",") + 1]
            parts.append(ItemPart("input_image", image=image, url_head=head))
        elif fields.role == "assistant":
            text = given(
                content_part.transcript if content_part.type == "output_audio" else content_part.text, f"{path}.text"
            )
            parts.append(ItemPart("output_text", text))
        else:
            parts.append(ItemPart("input_text", given(content_part.text, f"{path}.text")))
    item = Item(fields.role, parts)
    return item if fields.id is None else Item(fields.role, parts, fields.id)
