"""Session of a Wyoming client, which speaks texts and transcribes recordings one after the other."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import Any, TypeVar

from stretto_gateway.admission import KeptAudio
from stretto_gateway.answers import ApiError, mismatch
from stretto_gateway.catalogue import find_task, speaks, transcribes
from stretto_gateway.events import closing, text_events
from stretto_gateway.fields import Body, Ignored, validated
from stretto_gateway.gateway import Gateway
from stretto_gateway.metrics import Trace
from stretto_gateway.speech import speech_options, timed_parts
from stretto_gateway.speech_request import SpeechItem
from stretto_gateway.speech_stream import IncomingText, asking
from stretto_gateway.transcription import TRANSCRIBE
from stretto_gateway.voice_store import EVERYBODY
from stretto_wyoming.audio import ReceivedAudio
from stretto_wyoming.events import Event, WyomingChannel
from stretto_wyoming.fields import (
    AudioFormat,
    Ping,
    SelectProgram,
    Signal,
    Synthesize,
    SynthesizeChunk,
    SynthesizeStart,
    Transcribe,
)
from stretto_wyoming.programs import chosen_fields, describe, offered_voices, stored_voices

MAX_WAITING = 4  # texts and recordings of a session, beside the one in progress
MARKUP = {None: "auto", "text": "none", "ssml": "ssml"}
SAMPLE_BYTES = 2  # bytes per sample of speech
Fields = TypeVar("Fields", bound=Body)


class WyomingSession:
    """Session of one connection."""

    def __init__(self, gateway: Gateway, channel: WyomingChannel, tasks: asyncio.TaskGroup):
        self._gateway = gateway
        self._channel = channel
        self._tasks = tasks
        self._turn = asyncio.Lock()
        self._running = set[asyncio.Task[None]]()
        self._program = ""
        self._text: IncomingText | None = None
        self._transcribe = Transcribe()
        self._audio: ReceivedAudio | None = None

    @property
    def patience_s(self) -> float:
        """Maximum time until the next event, in seconds."""
        limits = self._gateway.limits
        if self._audio is not None:
            return limits.stall_s
        return limits.session_s if self._running and self._text is None else limits.idle_s

    async def handle(self, message: Any) -> None:
        """Handle an Event or ApiError; send an error if it is invalid."""
        try:
            if isinstance(message, ApiError):
                raise message
            await self._handle(message)
        except ApiError as error:
            await self._channel.send_error(error)

    async def complete(self) -> None:
        """Wait until all texts and recordings are complete."""
        if self._running:
            await asyncio.wait(self._running)

    async def _handle(self, event: Event) -> None:
        """Handle an event. As the protocol requires, events of unknown types have no effect."""
        match event.type:
            case "describe":
                await self._channel.send("info", **await describe(self._gateway))
            case "ping":
                await self._channel.send("pong", text=self._read(Ping, event).text)
            case "select-program":
                self._program = self._read(SelectProgram, event).name
            case "synthesize" if self._text is None:  # otherwise it repeats a text that has been sent in pieces
                self._speak_whole(self._read(Synthesize, event))
            case "synthesize-start":
                self._begin_text(self._read(SynthesizeStart, event))
            case "synthesize-chunk":
                self._open_text().add(self._read(SynthesizeChunk, event).text)
            case "synthesize-stop":
                self._open_text().end()
                self._text = None
            case "transcribe":
                self._transcribe = self._read(Transcribe, event)
            case "audio-start":
                self._begin_audio(self._read(AudioFormat, event))
            case "audio-chunk":
                form = self._read(AudioFormat, event)
                audio = self._audio or self._begin_audio(form)
                audio.add(form, event.payload)
            case "audio-stop" if self._audio is not None:
                self._read(Signal, event)
                self._audio.end()
                self._audio = None
                self._transcribe = Transcribe()

    def _read(self, model: type[Fields], event: Event) -> Fields:
        fields = validated(model, event.fields)
        Ignored(fields, self._gateway.strict)
        return fields

    def _begin(self, work: Callable[[], Awaitable[None]], release: Callable[[], None]) -> None:
        """Start `work` after all earlier requests, and then release memory; raise ApiError if too many wait."""
        if len(self._running) > MAX_WAITING:
            release()
            message = f"expected at most {MAX_WAITING} texts and recordings that wait, got another one"
            raise ApiError(429, message, code="rate_limit_exceeded")
        task = self._tasks.create_task(self._run(work))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        task.add_done_callback(lambda _: release())

    async def _run(self, work: Callable[[], Awaitable[None]]) -> None:
        async with self._turn:
            try:
                await work()
            except ApiError as error:
                await self._channel.send_error(error)

    def _speak_whole(self, request: Synthesize) -> None:
        held = self._gateway.sessions.held
        num_bytes = len(request.text.encode())
        held.add(num_bytes)
        self._begin(partial(self._speak, self._program, request, request.text), partial(held.remove, num_bytes))

    def _begin_text(self, request: SynthesizeStart) -> None:
        if self._text is not None:
            raise mismatch("type", "synthesize-stop before another text", "synthesize-start")
        text = IncomingText(self._gateway.limits, self._gateway.sessions.held)
        self._begin(partial(self._speak_written, self._program, request, text), text.close)
        self._text = text

    def _open_text(self) -> IncomingText:
        if self._text is None:
            raise mismatch("type", "synthesize-start before the text", "none")
        return self._text

    async def _speak_written(self, program: str, request: SynthesizeStart, text: IncomingText) -> None:
        """Speak a text while it is being written. If that fails, ignore the rest."""
        pieces = text.pieces()
        try:
            first = await anext(pieces, "")  # no slot is held before
            if first:
                await self._speak(program, request, _resumed(first, pieces))
        except ApiError as error:
            await self._channel.send_error(error)
        text.close()
        await text.ended()
        await self._channel.send("synthesize-stopped")

    async def _speak(self, program: str, request: SynthesizeStart, text: str | AsyncIterator[str]) -> None:
        """Send the speech of a text; raise ApiError if it fails."""
        num_bytes = 0
        with asking(EVERYBODY, self._gateway.sessions.held) as state:
            gateway = await self._gateway.for_model(program, speaks)
            profile = await gateway.catalogue.model(program)
            model = gateway.catalogue.name_of(profile)
            voices = offered_voices(profile, model, await stored_voices(gateway, profile))
            fields = chosen_fields(profile, voices, request.voice)
            markup = MARKUP[request.text_format]
            written = {"input": text if isinstance(text, str) else "", "response_format": "pcm", "markup": markup}
            item = validated(SpeechItem, written | {"model": program} | fields)
            ignored = Ignored(item, gateway.strict)
            options = await speech_options(gateway, item, state, ignored)
            form = {"rate": item.rate, "width": SAMPLE_BYTES, "channels": 1}
            try:
                async with aclosing(timed_parts(gateway, item, text, options, ignored, {})) as parts:
                    async for data in parts:
                        if not isinstance(data, bytes):  # times of words
                            continue
                        at = {"timestamp": round(1000 * num_bytes / SAMPLE_BYTES / item.rate)}
                        if not num_bytes:
                            await self._channel.send("audio-start", **form, **at)
                        await self._channel.send_event(Event("audio-chunk", form | at, data))
                        num_bytes += len(data)
            except ApiError as error:
                await self._channel.send_error(error)
        if num_bytes:
            await self._channel.send("audio-stop", timestamp=round(1000 * num_bytes / SAMPLE_BYTES / item.rate))

    def _begin_audio(self, form: AudioFormat) -> ReceivedAudio:
        if self._audio is not None:
            raise mismatch("type", "audio-stop before another recording", "audio-start")
        audio = ReceivedAudio(form, self._gateway.limits, self._gateway.sessions.held)
        self._audio = audio  # also if it is refused: it is closed then, and ignores the chunks until audio-stop
        self._begin(partial(self._write, self._transcribe.name or self._program, audio), audio.close)
        return audio

    async def _write(self, program: str, audio: ReceivedAudio) -> None:
        """Send the transcript of a recording, during the recording if the model can; raise ApiError if that fails."""
        gateway = await self._gateway.for_model(program, transcribes)
        profile = await gateway.catalogue.model(program)
        find_task(profile, (TRANSCRIBE,), "transcription")
        trace = Trace(gateway.metrics, TRANSCRIBE)
        text = ""
        with KeptAudio(gateway.sessions.held, profile) as kept:
            if audio.can_be_live(profile):
                pieces = kept.counted(audio.pieces())
                total_s = gateway.limits.session_s
                begin = partial(gateway.client.transcribe_live, pieces, audio.form.rate, total_s=total_s)
                queue = None
            else:
                begin = partial(gateway.client.transcribe, await audio.file())
                queue = gateway.queue
            await self._channel.send("transcript-start")
            async with gateway.slot(), closing(text_events(begin, {}, trace, queue)) as events:
                async for event in events:
                    text += event.text
                    if event.text:
                        await self._channel.send("transcript-chunk", text=event.text)
        await self._channel.send("transcript", text=text.strip())
        await self._channel.send("transcript-stop")


async def _resumed(first: str, pieces: AsyncIterator[str]) -> AsyncIterator[str]:
    """Yield a piece that has been read already, and then those after it."""
    yield first
    async for piece in pieces:
        yield piece
