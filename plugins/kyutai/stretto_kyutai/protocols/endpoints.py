"""Endpoints for Kyutai's protocols.

Paths and messages are the same as in Kyutai's own servers, so that their clients, Unmute and the PersonaPlex web page
work unchanged. Audio is mono at 24 kHz: Ogg Opus, or samples in MessagePack.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial
from typing import Any, Literal, Unpack

import numpy as np
from fastapi import APIRouter
from numpy.typing import NDArray
from pydantic import Field
from starlette.websockets import WebSocket

from stretto_client import ModelProfile, Speech, SpeechEvent, TaskOptions, Word
from stretto_gateway.admission import KeptAudio
from stretto_gateway.answers import ApiError, refused
from stretto_gateway.catalogue import DUPLEX, VoiceFile, find_task, find_voice, is_full_duplex, speaks, transcribes
from stretto_gateway.encoding import DEFAULT_RATE, FULL_SCALE, make_encoder
from stretto_gateway.events import reply_events
from stretto_gateway.fields import Ignored, Text, TextFields, validated
from stretto_gateway.metrics import SpeechTrace, Trace
from stretto_gateway.socket_session import DONE, SessionEnd
from stretto_gateway.speech import encoded, spoken, voice_options, wants_alignment
from stretto_gateway.speech_request import SpeechFields
from stretto_gateway.speech_stream import IncomingText, asking
from stretto_gateway.voice_store import StoredVoice
from stretto_kyutai.protocols.estimated_words import TranscriptWords, estimated_words
from stretto_kyutai.protocols.messages import bytes_in, field_of, packed, packed_error, samples_in, unpacked
from stretto_kyutai.protocols.sessions import KyutaiSession, ListeningSession, open_session

router = APIRouter()
# first byte of a message on /api/chat
HANDSHAKE = b"\x00"
AUDIO = b"\x01"
TEXT = b"\x02"
ERROR = b"\x05"
FRAME = 1920  # samples


def kyutai_voice(profile: ModelProfile, name: str | None) -> str | None:
    """Return the model's voice for a file name such as `NATF2.pt`; None for the default voice.

    Raises:
        ApiError: The model has named voices, but none with this name.
    """
    if not name or not profile.voices:
        return None
    file = name.rpartition("/")[2]
    if name.lower() in profile.voices:  # the voices of Kyutai TTS have the names of Kyutai's own files
        return name.lower()
    return find_voice(profile, file.rpartition(".")[0] or file)


class ChatQuery(TextFields):
    """Query parameters of a full-duplex session, as sent by Moshi and PersonaPlex clients."""

    text_prompt: Text = ""
    voice_prompt: Text | None = None
    seed: int | None = None
    text_temperature: float | None = Field(default=None, allow_inf_nan=False)
    text_topk: int | None = None
    audio_temperature: float | None = Field(default=None, allow_inf_nan=False)
    audio_topk: int | None = None

    def arguments(self, profile: ModelProfile, voice_file: VoiceFile | None = None) -> dict[str, Any]:
        """Return the arguments of `SpeechClient.talk` except the audio; raise ApiError for an unknown voice.

        Values that the model cannot use have no effect.

        Args:
            voice_file: The caller's own voice that `voice_prompt` selects; None if it selects none.
        """
        text = {"temperature": self.text_temperature, "top_k": self.text_topk}
        depth = {"temperature": self.audio_temperature, "top_k": self.audio_topk}
        options: dict[str, Any] = {name: value for name, value in text.items() if value is not None}
        if "depth" in profile.options and (depth_options := {k: v for k, v in depth.items() if v is not None}):
            options["depth"] = depth_options
        if self.seed is not None and self.seed >= 0:  # -1: any seed
            options["seed"] = self.seed
        has_roles = "text" in find_task(profile, (DUPLEX,), "full-duplex speech").system
        voice = voice_file or kyutai_voice(profile, self.voice_prompt)
        options |= {"voice": voice, "system": self.text_prompt if has_roles else ""}
        return options | {"output": {"encoding": "pcm_s16le", "sample_rate": DEFAULT_RATE}}


class ChatSession(ListeningSession):
    """Full-duplex session: sends text, and one frame of speech for each frame of user audio."""

    _num_voice_bytes = 0

    async def begin(self) -> None:
        profile = await self._select(is_full_duplex)
        task = find_task(profile, (DUPLEX,), "full-duplex speech")
        query = validated(ChatQuery, dict(self._socket.query_params))
        voice_file = await self._voices.recording(profile, task, query.voice_prompt)
        if voice_file is not None:
            self._gateway.sessions.held.add(len(voice_file.audio))
            self._num_voice_bytes = len(voice_file.audio)
        options = query.arguments(profile, voice_file)
        self._encoder = make_encoder("opus", DEFAULT_RATE, self._gateway.audio_tags)
        limits = self._gateway.limits
        options |= {"total_s": limits.session_s, "resume_s": limits.resume_s}
        start = partial(self._gateway.client.talk, self._audio.pieces(), DEFAULT_RATE, **options)
        self._task = self._tasks.create_task(self._follow(SpeechTrace(self._gateway.metrics, DUPLEX), start))

    async def handle(self, message: str | bytes | None) -> None:
        if isinstance(message, bytes) and message.startswith(AUDIO):
            self._audio.add(message[1:])

    def close(self) -> None:
        super().close()
        self._gateway.sessions.held.remove(self._num_voice_bytes)

    async def _report(self, event: SpeechEvent) -> None:
        if event.session:
            await self._channel.send_bytes(HANDSHAKE)
        if event.pcm is not None and (data := await encoded(self._encoder, event.pcm)):
            await self._channel.send_bytes(AUDIO + data)
        if event.text:
            await self._channel.send_bytes(TEXT + event.text.encode())


@router.websocket("/api/chat")
async def open_chat(socket: WebSocket) -> None:
    """Run a session in Moshi's full-duplex protocol, where a message's first byte is its kind."""
    await open_session(socket, ChatSession, lambda text: ERROR + text.encode())


def reads_speech(profile: ModelProfile) -> bool:
    """Return True if the model transcribes live audio."""
    return transcribes(profile) and profile.transcribes_live


class TranscriptSession(ListeningSession):
    """Live transcription: sends completed words, then their ends, and pause probabilities.

    A model that reads whole recordings transcribes turn by turn; its words have estimated times.
    """

    def _listen_anew(self) -> None:
        super()._listen_anew()
        self._num_steps = 0
        self._num_open = 0  # words sent whose ends have not been sent

    async def begin(self) -> None:
        profile = await self._select(reads_speech)
        find_task(profile, ("asr",), "transcription")
        if not profile.transcribes_live:
            raise ApiError(400, f"model: {profile.family!r} does not transcribe live audio", "model", "unsupported")
        if profile.continues_transcripts:
            self._task = self._tasks.create_task(self._follow_turns(profile))
            return
        options: TaskOptions = {"progress": True}
        if profile.pauses_s:
            options["pauses"] = True
        start = partial(self._transcribe, self._audio.pieces(), **options)
        self._task = self._tasks.create_task(self._follow(Trace(self._gateway.metrics, "asr"), start))

    def _transcribe(self, pieces: AsyncIterator[NDArray[Any]], **options: Unpack[TaskOptions]) -> Speech:
        total_s = self._gateway.limits.session_s
        return self._gateway.client.transcribe_live(pieces, DEFAULT_RATE, total_s=total_s, **options)

    async def _follow_turns(self, profile: ModelProfile) -> None:
        """Transcribe turn by turn, and end the session."""
        pieces = self._audio.pieces()
        await self._send("Ready")
        async for first in pieces:
            if len(first):
                async with self._gateway.slot():
                    await self._follow_turn(first, pieces, profile)
            await self._send_markers(self._audio.num_samples)
        raise SessionEnd(DONE)

    async def _follow_turn(
        self, first: NDArray[np.float32], pieces: AsyncIterator[NDArray[np.float32]], profile: ModelProfile
    ) -> None:
        """Send the words of a turn, which begins with the samples `first`."""
        words = TranscriptWords((self._audio.num_samples - len(first)) / DEFAULT_RATE)
        max_samples = round(profile.max_audio_s / 2 * DEFAULT_RATE)
        with KeptAudio(self._gateway.sessions.held, profile) as kept:
            turn = kept.counted(self._turn(first, pieces, max_samples))
            trace = Trace(self._gateway.metrics, "asr")
            async with aclosing(reply_events(partial(self._transcribe, turn), {}, trace)) as events:
                async for event in events:
                    ended = words.push(event)
                    await self._send_words(deque(ended), ended)

    async def _turn(
        self, first: NDArray[np.float32], pieces: AsyncIterator[NDArray[np.float32]], max_samples: int
    ) -> AsyncIterator[NDArray[np.float32]]:
        """Yield a turn's samples up to the next marker or `max_samples`. Silence completes a frame."""
        yield first
        num_samples = len(first)
        while num_samples < max_samples and not self._audio.markers:
            pcm = await anext(pieces, None)
            if pcm is None:
                break
            yield pcm
            num_samples += len(pcm)
        yield np.zeros(max(0, FRAME - num_samples), np.float32)

    async def handle(self, message: str | bytes | None) -> None:
        if not isinstance(message, bytes):
            return
        record = unpacked(message)
        match record["type"]:
            case "Audio":
                self._audio.add(samples_in(record))
            case "OggOpus":
                self._audio.add(bytes_in(record))
            case "Marker":
                self._audio.add(int(field_of(record, "id", int, "an integer")))
            case "Init" if self._audio.num_samples:
                await self._begin_again()

    async def _begin_again(self) -> None:
        """End the transcript, and begin a new one."""
        assert self._task is not None, "it has begun"
        self._task.cancel()
        await asyncio.wait([self._task])
        self._audio.close()
        self._listen_anew()
        await self.begin()

    async def _report(self, event: SpeechEvent) -> None:
        if event.session:
            await self._send("Ready")
        for probabilities in event.pauses:
            self._num_steps += 1
            num_unread = max(0, self._audio.num_samples - FRAME * self._num_steps)
            await self._send("Step", step_idx=self._num_steps, prs=list(probabilities), buffered_pcm=num_unread)
        await self._send_words(deque(event.begun), event.words)
        await self._send_markers(round((event.transcribed_s or 0.0) * DEFAULT_RATE))

    async def _send_markers(self, num_transcribed: int) -> None:
        """Send the markers before sample `num_transcribed`."""
        markers = self._audio.markers
        while markers and markers[0][0] <= num_transcribed:
            await self._send("Marker", id=markers.popleft()[1])

    async def _send_words(self, begun: deque[Word], ended: tuple[Word, ...]) -> None:
        """Send words and their ends in order. Words with the same end share one end message."""
        for index, word in enumerate(ended):
            if self._num_open:
                self._num_open -= 1
            else:
                await self._send_word(begun.popleft())
            if index + 1 == len(ended) or ended[index + 1].end_s != word.end_s:
                await self._send("EndWord", stop_time=word.end_s)
        for word in begun:
            await self._send_word(word)
            self._num_open += 1

    async def _send_word(self, word: Word) -> None:
        await self._send("Word", text=word.word, start_time=word.start_s)

    async def _send(self, message_type: str, **fields: Any) -> None:
        await self._channel.send_bytes(packed(message_type, **fields))


@router.websocket("/api/asr-streaming")
async def open_transcript(socket: WebSocket) -> None:
    """Transcribe live audio, using the protocol of Kyutai's speech-to-text server."""
    await open_session(socket, TranscriptSession, packed_error)


Format = Literal["Pcm", "PcmMessagePack", "OggOpus", "OggOpusMessagePack"]


class SpeakQuery(TextFields):
    """Query parameters of a speech session, as sent by Unmute."""

    format: Format = "OggOpus"
    voice: Text | None = None
    seed: int | None = None
    temperature: float | None = Field(default=None, allow_inf_nan=False)
    top_k: int | None = None
    cfg_alpha: float | None = Field(default=None, allow_inf_nan=False)

    def fields(self, profile: ModelProfile, is_strict: bool, stored_voice: StoredVoice | None = None) -> SpeechFields:
        """Return the fields of a speech request.

        Unless `is_strict`, an unknown voice is replaced by the model's default, because Kyutai's clients send the names
        of Kyutai's own voice files. `cfg_alpha` is ignored unless it is one of the model's guidance scales.

        Args:
            stored_voice: The caller's own voice that `voice` selects; None if it selects none.
        """
        try:
            voice = stored_voice.id if stored_voice is not None else kyutai_voice(profile, self.voice)
        except ApiError:
            if is_strict:
                raise
            voice = None
        form: dict[str, Any] = {"response_format": "pcm", "sample_rate": DEFAULT_RATE}
        form |= {"seed": self.seed, "temperature": self.temperature, "top_k": self.top_k}
        if self.cfg_alpha in profile.guidance_scales:
            form["guidance_scale"] = self.cfg_alpha
        return SpeechFields(model="", voice=voice, **form)


class SpeakSession(KyutaiSession):
    """Session that speaks one text, sent by the client word by word, and reports word times."""

    _text: IncomingText | None = None  # until the first word
    _num_samples = 0

    async def begin(self) -> None:
        profile = await self._select(speaks)
        query = validated(SpeakQuery, dict(self._socket.query_params))
        find_task(profile, ("tts",), "text to speech")
        stored_voice = await self._voices.own(profile, query.voice)
        self._fields = query.fields(profile, self._gateway.strict, stored_voice)
        is_opus = query.format.startswith("Ogg")
        tags = self._gateway.audio_tags
        self._encoder = make_encoder("opus", DEFAULT_RATE, tags) if is_opus else None
        self._is_packed = query.format.endswith("MessagePack")
        self._is_aligned = wants_alignment(profile)
        self._has_times = profile.times_words or self._is_aligned
        self._written = list[str]()
        self._words = deque[Word]()  # that have not been sent
        await self._send("Ready")

    @property
    def patience_s(self) -> float:
        is_complete = self._text is not None and self._text.is_ended
        return self._gateway.limits.session_s if is_complete else super().patience_s

    async def handle(self, message: str | bytes | None) -> None:
        record: dict[str, Any] = {"type": "Text", "text": message} if isinstance(message, str) else {"type": "Eos"}
        if isinstance(message, bytes) and message != b"\0":
            record = unpacked(message)
        match record["type"]:
            case "Text":
                self._write(field_of(record, "text", str, "text"))
            case "Eos":
                self._end()
            case "Voice":
                raise refused("embeddings", "no value (voices have names here)", "an embedding")

    def _write(self, text: str) -> None:
        """Append the words of a message. A word never spans several messages."""
        words = text.split()
        if not words or (self._text is not None and self._text.is_ended):
            return
        if self._text is None:
            self._text = IncomingText(self._gateway.limits, self._gateway.sessions.held)
            self._task = self._tasks.create_task(self._speak(self._text))
        if self._text.add(" ".join(words) + " ") and not self._has_times:
            self._written += words

    def _end(self) -> None:
        if self._text is None:
            raise SessionEnd(DONE)
        self._text.end()

    def close(self) -> None:
        if self._text is not None:
            self._text.close()

    async def _speak(self, text: IncomingText) -> None:
        with asking(self._socket.state.owner, self._gateway.sessions.held) as state:
            ignored = Ignored(self._fields, self._gateway.strict)
            options = await voice_options(self._gateway, self._fields, state, ignored)
            if self._is_aligned:
                options["words"] = "aligned"
            async with spoken(self._gateway, text.pieces(), options, ignored) as events:
                async for event in events:
                    self._words += event.words
                    await self._send_words(None)
                    if event.pcm is not None:
                        await self._send_audio(event.pcm)
        duration_s = self._num_samples / DEFAULT_RATE
        self._words += estimated_words(self._written, duration_s)
        await self._send_words(duration_s)
        if self._encoder is not None:
            await self._send_opus(self._encoder.close())
        raise SessionEnd(DONE)

    async def _send_words(self, until_s: float | None) -> None:
        """Send the words whose ends are known.

        If a word has no end of its own, it ends where the next word begins, or at `until_s`, the end of the audio.
        """
        while self._words:
            word = self._words[0]
            following = self._words[1].start_s if len(self._words) > 1 else until_s
            stop_s = word.end_s if word.end_s is not None else following
            if stop_s is None:
                return
            self._words.popleft()
            await self._send("Text", text=word.word, start_s=word.start_s, stop_s=max(stop_s, word.start_s))

    async def _send_audio(self, pcm: NDArray[Any]) -> None:
        """Send samples, int16 [n], frame by frame."""
        self._num_samples += len(pcm)
        if self._encoder is not None:
            await self._send_opus(await encoded(self._encoder, pcm))
            return
        samples = (pcm / FULL_SCALE).astype("<f4")
        for first in range(0, len(samples), FRAME):
            frame = samples[first : first + FRAME]
            data = packed("Audio", pcm=frame.tolist()) if self._is_packed else frame.tobytes()
            await self._channel.send_bytes(data)

    async def _send_opus(self, data: bytes) -> None:
        if data:  # Rust clients read bytes as a list of integers
            await self._channel.send_bytes(packed("OggOpus", data=list(data)) if self._is_packed else data)

    async def _send(self, message_type: str, **fields: Any) -> None:
        """Send a message, or nothing if the session's format does not use MessagePack."""
        if self._is_packed:
            await self._channel.send_bytes(packed(message_type, **fields))


@router.websocket("/api/tts_streaming")
async def open_speech(socket: WebSocket) -> None:
    """Speak streamed text, using the protocol of Kyutai's text-to-speech server."""
    await open_session(socket, SpeakSession, packed_error)
