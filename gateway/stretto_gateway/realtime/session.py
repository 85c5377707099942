"""Realtime session, which handles the client's events."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from stretto_client import ModelProfile
from stretto_gateway.answers import ApiError, refused
from stretto_gateway.base64_data import read_base64
from stretto_gateway.catalogue import CallersVoices
from stretto_gateway.gateway import Gateway
from stretto_gateway.realtime import events as client
from stretto_gateway.realtime.audio_input import Edge, InputBuffer, milliseconds, samples
from stretto_gateway.realtime.channel import Channel
from stretto_gateway.realtime.conversation import Item, ItemPart
from stretto_gateway.realtime.settings import (
    RealtimeSettings,
    Settings,
    SettingsChange,
    check_formats,
    ignoring,
    restrict_to_model,
    session_record,
)
from stretto_gateway.realtime.state import RealtimeState
from stretto_gateway.realtime.talk import Talk, Transcriber
from stretto_gateway.realtime.wire_audio import WireReader
from stretto_gateway.socket_session import new_id, read_json

MIN_COMMIT_MS = 100  # as at OpenAI


class RealtimeSession:
    """Session of one connection, with background work in `tasks`.

    The conversation of a session that only transcribes stays empty. `reader` reads audio in the input format.
    """

    def __init__(self, gateway: Gateway, channel: Channel, model: str, tasks: asyncio.TaskGroup, voices: CallersVoices):
        self._gateway = gateway
        self._channel = channel
        self._model = model
        self._tasks = tasks
        self._voices = voices
        self._session_id = new_id("sess")
        self._expires_at = int(time.time() + gateway.limits.session_s)
        self._shared = gateway.of_route(RealtimeState)
        max_samples = samples(1000 * gateway.limits.max_turn_s)
        self._input = InputBuffer(max_samples, gateway.sessions.held, self._shared.end_of_turn)
        self._talk = Talk(gateway, channel, tasks, voices)
        self._transcriber = Transcriber(gateway.listener, channel)
        self._settings: Settings = RealtimeSettings(model=model)
        self.reader = WireReader(self._settings.audio.input.format)
        # Errors of the formats of `input` and `output`, until a format is set that the gateway has.
        self._refused_formats: dict[str, ApiError | None] = {}
        self._next_id = new_id("item")  # id of the user's next item
        self._last_id: str | None = None  # id of the item that precedes the next item
        self._is_live = False  # turns are transcribed live
        self._num_transcribed = 0  # samples sent to be transcribed
        self._handlers: dict[str, Callable[[Any], Awaitable[None]]] = {
            "session.update": self._update,
            "input_audio_buffer.append": self._append,
            "input_audio_buffer.commit": self._commit_all,
            "input_audio_buffer.clear": self._clear,
            "conversation.item.create": self._create_item,
            "conversation.item.truncate": self._talk.truncate,
            "conversation.item.delete": self._talk.delete,
            "conversation.item.retrieve": self._retrieve_item,
            "response.create": self._respond,
            "response.cancel": self._talk.cancel,
            "output_audio_buffer.clear": self._channel.clear_output,
        }

    async def begin(self, settings: Settings) -> None:
        """Apply the settings and send `session.created`."""
        profile = await self._gateway.catalogue.profile()
        await settings.check(profile, self._voices)
        self._apply(settings, profile)
        await self._channel.send("session.created", session=self._record(), **self._input.turn_end)

    async def handle(self, text: str | bytes | None) -> None:
        record: dict[str, Any] = {}
        try:
            record = read_json(text)
            event = client.read_event(record, self._gateway.strict)
            await self._handlers[event.type](event)
        except ApiError as error:
            await self._channel.send_error(error, client.event_id(record))

    async def complete(self) -> None:
        """Wait until transcripts and the reply in progress are complete."""
        await self._transcriber.complete()
        await self._talk.complete()

    def close(self) -> None:
        """Discard the audio and the conversation."""
        self._input.pop_turn()
        self._transcriber.drop()
        self._talk.close()

    async def _update(self, event: client.SessionUpdate) -> None:
        self._refused_formats |= check_formats(event.session)
        is_empty = self._talk.is_empty and not self._input.num_samples
        change = SettingsChange(self._settings, event.session, self._model, is_empty)
        catalogues = self._gateway.catalogue, self._transcriber.catalogue
        profile = await restrict_to_model(change, *catalogues, self._model, self._voices)
        change.ignored[:0] = event.ignored
        if self._gateway.strict:
            change.expect_honoured()
        self._apply(change.settings, profile)
        for error in change.errors:
            await self._channel.send_error(error, event.event_id)
        extra = {**self._input.turn_end, **ignoring(change.ignored)}
        await self._channel.send("session.updated", session=self._record(), **extra)

    def _apply(self, settings: Settings, profile: ModelProfile) -> None:
        self._channel.check_formats(settings)
        self._is_live = self._transcriber.configure(settings.audio.input.transcription)
        max_s = min(self._gateway.limits.max_turn_s, profile.max_audio_s)
        heard = settings.audio.input
        begins_anew = self._input.configure(heard.vad, samples(1000 * max_s), heard.eagerness)
        if begins_anew or not self._is_live:
            self._drop_transcript()
            self._num_transcribed = 0  # a later transcription of the turn begins with its first buffered sample
        self._settings = settings
        if settings.audio.input.format.type != self.reader.form.type:
            self.reader = WireReader(settings.audio.input.format)

    def _record(self) -> dict[str, Any]:
        return session_record(self._settings, self._session_id, self._expires_at)

    def _expect_format(self, direction: str, param: str) -> None:
        """Raise ApiError for the field `param` if the client's format of `input` or `output` audio was refused.

        In another format, the audio would be noise.
        """
        error = self._refused_formats.get(direction)
        if error is not None:
            path = f"session.audio.{direction}.format"
            expected = f"{path} to be set to a format of the gateway first, because another one was refused"
            raise ApiError(400, f"{param}: expected {expected} ({error.message})", param, "invalid_value")

    async def _append(self, event: client.AudioAppend) -> None:
        self._expect_format("input", "audio")
        await self.hear(self.reader.read(read_base64("audio", event.audio)), event.event_id)

    async def hear(self, pcm: bytes, event_id: str | None = None) -> None:
        """Process samples, pcm16 at 24 kHz; errors about their turns repeat the client's `event_id`."""
        self._input.add(pcm)
        while self._input.has_window:
            await self._shared.windows.turn()
            edge = await self._input.process_window()
            try:
                if edge is not None:
                    await (self._start_turn(edge) if edge.is_start else self._end_turn(edge))
                await self._transcribe_until(self._input.settled)
            except ApiError as error:  # continue with the remaining samples
                await self._channel.send_error(error, event_id)
        await self._transcribe_until(self._input.settled)

    async def _transcribe_until(self, until: int) -> None:
        """Transcribe samples of the turn in progress up to `until`, if the model reads live audio.

        A failure ends only the transcription, never the turn. While too many recordings are waiting, the samples stay
        in the buffer, so that a transcription that begins later has the whole turn.
        """
        if self._is_live and until > self._num_transcribed and self._transcriber.can_transcribe:
            pcm = self._input.since(self._num_transcribed, until)
            self._num_transcribed = until
            try:
                self._transcriber.transcribe_samples(self._next_id, pcm, self._tasks)
            except ApiError as error:
                await self._transcriber.fail(error)

    async def _start_turn(self, edge: Edge) -> None:
        self._num_transcribed = edge.sample
        fields = {"audio_start_ms": milliseconds(edge.sample), "item_id": self._next_id}
        await self._channel.send("input_audio_buffer.speech_started", **fields)
        if self._input.vad is not None and self._input.vad.interrupt_response:
            await self._talk.interrupt()

    async def _end_turn(self, edge: Edge) -> None:
        fields = {"audio_end_ms": milliseconds(edge.sample), "item_id": self._next_id}
        await self._channel.send("input_audio_buffer.speech_stopped", **fields)
        await self._transcribe_until(edge.sample)
        await self._commit(self._input.pop_turn(edge.sample))
        answers = self._input.vad is not None and self._input.vad.create_response
        if answers and isinstance(self._settings, RealtimeSettings):
            await self._respond(client.ResponseCreate(type="response.create"))

    async def _commit_all(self, _: client.ClientEvent | None = None) -> None:
        self._input.add(self.reader.end())
        got_ms = milliseconds(self._input.num_committable)
        if got_ms < MIN_COMMIT_MS:
            message = f"input_audio_buffer: expected at least {MIN_COMMIT_MS} ms of audio, got {got_ms} ms"
            raise ApiError(400, message, code="input_audio_buffer_commit_empty")
        await self._transcribe_until(self._input.end)
        await self._commit(self._input.pop_turn())

    async def _commit(self, pcm: bytes) -> None:
        item = Item("user", [ItemPart("input_audio", None, pcm)], self._next_id)
        self._next_id = new_id("item")
        before = self._last_id
        self._last_id = item.item_id
        if isinstance(self._settings, RealtimeSettings):
            try:
                before = self._talk.add(item)
            except ApiError:
                self._transcriber.drop()  # the next turn has its own transcription
                raise
        fields = {"previous_item_id": before, "item_id": item.item_id}
        await self._channel.send("input_audio_buffer.committed", **fields)
        await self._talk.announce(item, before)
        if self._settings.audio.input.transcription is not None:
            await self._transcriber.begin(item, self._tasks)

    async def _clear(self, _: client.ClientEvent) -> None:
        self.reader.end()
        self._input.pop_turn()
        self._drop_transcript()
        await self._channel.send("input_audio_buffer.cleared")

    def _drop_transcript(self) -> None:
        """End the transcription of the turn in progress. A new transcription belongs to a new item."""
        if self._transcriber.drop():
            self._next_id = new_id("item")

    async def _create_item(self, event: client.ItemCreate) -> None:
        self._conversing(event)
        self._expect_readable(event.item, "item")
        await self._talk.create(event, self._settings.audio.input.format)

    async def _retrieve_item(self, event: client.ItemEvent) -> None:
        await self._talk.retrieve(event, self._settings.audio.input.format)

    async def _respond(self, event: client.ResponseCreate) -> None:
        settings = self._conversing(event)
        reply = event.response
        for index, item in enumerate(reply.input or ()):
            self._expect_readable(item, f"response.input.{index}")
        has_own_format = "format" in reply.audio.output.model_fields_set
        if "audio" in (reply.output_modalities or settings.output_modalities) and not has_own_format:
            self._expect_format("output", "response")
        self._channel.check_format("response.audio.output.format", reply.audio.output.format)
        await self._talk.answer(settings, event)

    def _expect_readable(self, item: client.ItemFields | client.ItemReference, path: str) -> None:
        """Raise ApiError if the client's item `path` has audio of another format."""
        if isinstance(item, client.ItemFields) and any(content.type == "input_audio" for content in item.content):
            self._expect_format("input", path)

    def _conversing(self, event: client.ClientEvent) -> RealtimeSettings:
        if not isinstance(self._settings, RealtimeSettings):
            raise refused("type", "an event of transcription sessions, which cannot generate replies", event.type)
        return self._settings
