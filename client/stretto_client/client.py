"""Asynchronous client for the server.

Each utterance has its own gRPC stream, so it can be cancelled separately.
"""

import asyncio
import hashlib
import ipaddress
import json
import os
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self, Unpack

import grpc
from numpy.typing import NDArray
from tritonclient.grpc import InferenceServerException, InferInput
from tritonclient.grpc.aio import InferenceServerClient

from stretto_client.adapters import run_adapter_command
from stretto_client.checked_speech import Lead, attempts_of, check_one_of, checked
from stretto_client.continued_speech import continued
from stretto_client.errors import Timeouts
from stretto_client.growing_transcript import transcribe_growing
from stretto_client.live_speech import LiveAudio, LiveText, speak_written
from stretto_client.long_speech import LongSpeech, Speech, cut, is_short, judged_late
from stretto_client.markup import MARKUPS, Markup, has_marks
from stretto_client.model_profile import ModelProfile, fetch_name, fetch_profile
from stretto_client.part_stream import PartStream
from stretto_client.produced_speech import Items, ProducedSpeech
from stretto_client.shared_memory import RingSize, Sharing
from stretto_client.speech_stream import (
    Earlier,
    SpeakOptions,
    SpeechStream,
    TranscriptionOptions,
    audio_inputs,
    image_inputs,
    options_json,
    speech_inputs,
    strings,
    system_turn,
    transcription_inputs,
    with_seed,
)
from stretto_client.tries import Tries, patiently
from stretto_client.unread import UnreadAudio
from stretto_client.voices import Audio, MarkedVoice, MarkedVoices, RecordedVoice
from stretto_client.word_check import Listeners
from stretto_contract.joins import JOINS, Join
from stretto_contract.pronunciation import Entries
from stretto_contract.schema import Encoding, Memory, OptionsRecord, OutputOptions, SpeechOptions
from stretto_contract.scripts import foreign_words
from stretto_contract.speech_checks import ATTEMPTS, Check

END = Timeouts(first_s=2.0, between_s=2.0, total_s=2.0)  # limits of the request that ends a session
DIRECTORY = Path("/dev/shm")  # folder of the key, which every client that can share memory finds
HEADER = "triton-grpc-protocol-stretto-key"
CALLER_HEADER = "stretto-caller"


def key_headers(server: str, directory: Path = DIRECTORY) -> dict[str, str]:
    """Return the header that grants access to the server's shared-memory API; empty if no key is found.

    The key is sent only to loopback addresses, because another program may listen on the same port of another host.
    """
    host, _, port = server.rpartition(":")
    if not is_loopback(host.strip("[]")) or not port.isdigit():
        return {}
    files = directory.glob(f"stretto_launch_*.run/key-{port}")
    try:
        by_time = {path.stat().st_mtime_ns: path for path in files if ours(path)}
        return {HEADER: by_time[max(by_time)].read_text()} if by_time else {}
    except FileNotFoundError:  # the server has just stopped
        return {}


def caller_headers(server: str, caller: Callable[[], str] | None) -> dict[str, str] | None:
    """Return the headers that identify the caller; None without a caller or without the server's key."""
    key = key_headers(server) if caller is not None else {}
    if not key or caller is None:
        return None
    return {**key, CALLER_HEADER: hashlib.blake2b(caller().encode(), digest_size=16).hexdigest()}


def ours(path: Path) -> bool:
    """Return True if this user owns the file and no other user can have written it."""
    state = path.lstat()
    folder = path.parent.lstat()
    return state.st_uid == folder.st_uid == os.getuid() and not (state.st_mode | folder.st_mode) & 0o077


def is_loopback(host: str) -> bool:
    """Return True if `host` is a loopback address of this machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_plain(text: str, markup: Markup) -> bool:
    """Return True if a text is spoken unchanged, in one request."""
    return is_short(text) and not has_marks(text, markup) and not foreign_words(text)


def for_text(
    options: SpeakOptions,
    pronunciations: Entries | None,
    transliterates: bool,
    with_codes: bool,
    voice: MarkedVoice | None,
) -> SpeakOptions:
    """Return a request's options with the voice, pronunciations and other settings of one of its texts."""
    if voice is not None:
        options = {**options, "voice": voice.voice}
    if with_codes:
        options = {**options, "output": {**options.get("output", {}), "codes": True}}
    if transliterates:
        options = {**options, "transliterate": True}
    if pronunciations:
        options = {**options, "pronunciations": {**options.get("pronunciations", {}), **pronunciations}}
    return options


def output_of(output: OutputOptions, encoding: Encoding | None, sample_rate: int | None) -> OutputOptions:
    """Return the output options with an encoding and a sample rate, unless they are None."""
    output = {**output}
    if encoding is not None:
        output["encoding"] = encoding
    if sample_rate is not None:
        output["sample_rate"] = sample_rate
    return output


# Keep gRPC's windows from growing to megabytes (minutes of unread speech). Other options are tritonclient's defaults.
CHANNEL = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 65_536),
    ("grpc.enable_http_proxy", 0),  # http_proxy is meant for web pages; such a proxy rarely reaches this server
]


def with_ring(options: SpeakOptions, sharing: Sharing | None) -> SpeakOptions:
    """Return `options` with a ring in shared memory for the samples, if the client shares memory."""
    output: OutputOptions = {**options.get("output", {})}
    if sharing is not None:
        output["ring"] = sharing.make_ring().option()
    options = {**options, "output": output}
    if not output:
        del options["output"]
    return options


class SpeechClient:
    """Client for speech, transcription and conversations.

    Args:
        server: Address of the server's gRPC service (host:port).
        timeouts: Timeouts for each utterance.
        model: Name of the ensemble.
        shared_memory: `system` or `cuda` to exchange audio with a server on the same host through shared memory.
        ring: Size of the shared memory for the samples of one utterance.
        caller: Function that identifies the caller of the current request, if this program serves several callers. A
            server on the same host divides its limits fairly among these callers.
    """

    def __init__(
        self,
        server: str = "localhost:8001",
        timeouts: Timeouts | None = None,
        model: str = "speech",
        shared_memory: Memory | None = None,
        ring: RingSize | None = None,
        caller: Callable[[], str] | None = None,
    ):
        if shared_memory not in (None, "system", "cuda"):
            raise ValueError(f"shared_memory: expected 'system' or 'cuda', got {shared_memory!r}")
        self.server = server
        self.timeouts = timeouts or Timeouts()
        self.model = model
        self._caller = caller
        self._memory = shared_memory
        self._ring_size = ring or RingSize()
        self._shared: set[Sharing] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._client = InferenceServerClient(server, channel_args=CHANNEL)
        self.adapters = partial(run_adapter_command, self._client, server, partial(key_headers, server))
        self._profile: ModelProfile | None = None
        self._listeners = Listeners(self, partial(SpeechClient, caller=caller))
        self.tries: Tries = patiently  # tries of the later clauses of a long text, while the server is full

    async def profile(self, refresh: bool = False) -> ModelProfile:
        """Return the model profile, cached unless `refresh` is true; raises the same as `fetch_profile`."""
        if self._profile is None or refresh:
            self._profile = await fetch_profile(self._client, self.model, self.server, self.timeouts.first_s)
        return self._profile

    def speak(
        self,
        text: str | AsyncIterable[str],
        /,
        *,
        task: str = "tts",
        voice: str | RecordedVoice | None = None,
        encoding: Encoding | None = None,
        sample_rate: int | None = None,
        markup: Markup = "none",
        rates: bool = False,
        check: Check = "signals",
        attempts: int = ATTEMPTS,
        hold_s: float = 0.0,
        check_with: str | None = None,
        join: Join = "independent",
        voices: MarkedVoices | None = None,
        redraws: Sequence[Sequence[int]] | None = None,
        **options: Unpack[SpeechOptions],
    ) -> Speech:
        """Speak `text` and return the events. For the task `tts`, the text may have any length.

        A text that is too long for the model is split into clauses. All clauses have the same options and seed, and
        each one is requested once all events of the previous one have been received. Streamed text is an async iterable
        of pieces, split anywhere. It is spoken as it arrives, or sentence by sentence if the model needs whole texts.

        Args:
            task: Name of the model's task. If the task generates text first, the events contain it.
            voice: Name of a voice, or a recording; None for the model's default.
            encoding: `pcm_f32le` (the default) or `pcm_s16le`; short for `output={"encoding": ...}`.
            sample_rate: In Hz, by default the codec's; short for `output={"sample_rate": ...}`.
            markup: Markup of the text, for the task `tts`: `none`, `markdown`, `ssml`, or `auto`, which is SSML after
                `<speak` and otherwise Markdown. The reasoning and the tags of language models are always left out, and
                there is a pause after lines without punctuation. `speak_once` sends the text unchanged.
            rates: True if the caller plays each event at its `speed`, which changes with `<prosody rate>` of SSML.
            check: `signals` or `words` to list the `faults` of speech in the report, for the task `tts`, or `off`.
            attempts: Maximum number of attempts to speak a clause; each begins with the speech that was sent.
            hold_s: Minimum duration of speech in seconds, up to MAX_HOLD_S, that is held back until it is measured.
            check_with: Recogniser for `words`: `self`, `grpc://HOST:PORT` or `http://HOST:PORT/v1` (`Address`).
            join: `continued` if each clause continues the one before (`ContinuedSpeech`); clauses are then shorter.
            voices: Voices that marks in the text may select; None for those of the model.
            redraws: `redraw_from` of an earlier report, to repeat its speech without measuring it; it needs the seed.
            options: Server options, e.g. `seed=1` or `chunking={"playout_s": 0.2}`. Options that are None are not sent.
        """
        check_one_of("markup", MARKUPS, markup)
        attempts = attempts_of(check, attempts, hold_s)
        judge = self._listeners.judge(check_with, options, join) if check == "words" else None
        check_one_of("join", JOINS, join)
        output = output_of(options.get("output", {}), encoding, sample_rate)
        request_options: SpeakOptions = {**options, "voice": voice, "output": output}
        voices = voices or MarkedVoices.of_model(self.profile)
        if not isinstance(text, str):
            written = partial(speak_written, self, task, request_options, LiveText(text, markup, rates, join, voices))
            return ProducedSpeech(judged_late(judge, partial(written, attempts=attempts, hold_s=hold_s, judge=judge)))
        if task != "tts":
            return self.speak_once(task, request_options, text)
        is_single = is_plain(text, markup) or "piece" in options
        if attempts > 1 or not is_single:
            request_options = with_seed(request_options)
        clause = partial(self.speak_once, task)
        speak = checked(clause, request_options, attempts, Lead(hold_s), self.tries, judge, self.profile, redraws)
        if is_single:
            return speak(text)
        try_out = None if options.get("transliterate") else partial(self.speak_once, task, request_options)
        pieces = partial(cut, text, self.profile, markup, try_out, rates, join)
        return LongSpeech(continued(speak, join, self.profile, request_options), pieces, voices, self.tries, judge)

    def speak_once(
        self,
        task: str,
        options: SpeakOptions,
        text: str,
        timeouts: Timeouts | None = None,
        piece: int = 0,
        pronunciations: Entries | None = None,
        transliterates: bool = False,
        earlier: Earlier | None = None,
        voice: MarkedVoice | None = None,
    ) -> SpeechStream:
        """Send a single speech request and return its events.

        Args:
            piece: Number of the piece to speak, if the model is known to speak a text in several.
            pronunciations: Entries of this text, in addition to those of the options.
            transliterates: True to transliterate this text, regardless of the options.
            voice: Voice of this text; None for that of the options.
        """
        options = for_text(options, pronunciations, transliterates, earlier is not None, voice)
        if task == "tts" and self._profile is not None and "piece" in self._profile.options:
            options = {"piece": piece, **options}
        sharing = self._share()
        return self.send(speech_inputs(text, task, with_ring(options, sharing), sharing, earlier), sharing, timeouts)

    def transcribe(self, audio: Audio, /, **options: Unpack[TranscriptionOptions]) -> SpeechStream:
        """Transcribe a recording and return the events.

        Args:
            audio: Path or contents of a file, or (samples [n], rate in Hz).
        """
        sharing = self._share()
        return self.send(transcription_inputs(audio, options, sharing), sharing)

    def transcribe_live(
        self,
        pieces: AsyncIterable[NDArray[Any]],
        sample_rate: int,
        /,
        *,
        fill_after_s: float | None = None,
        total_s: float | None = None,
        **options: Unpack[TranscriptionOptions],
    ) -> Speech:
        """Transcribe audio while it is being recorded, and return the events.

        Text and word times arrive as soon as the model has generated them (`profile().reads_live_audio`), or every 2 s
        (`profile().continues_transcripts`). A file is transcribed as fast as the server can. The session may last as
        long as the model's maximum length, up to an hour; `total_s` also limits it.

        Args:
            pieces: Parts of the samples, of any length, mono [n]: floating-point in [-1, 1], or int16.
            sample_rate: Sample rate of the samples in Hz, 8,000 to 192,000.
            fill_after_s: Seconds without samples after which silence is sent in real time; None to wait for samples.
            total_s: Maximum duration of the session in seconds; None for the client's `Timeouts.total_s`.
            options: As for `transcribe`. With `resume_s`, a lost connection may be continued within that time.
        """
        unread = UnreadAudio(pieces, sample_rate, fill_after_s)
        live = self._live(transcription_inputs(None, options), unread, options.get("resume_s", 0.0), total_s)
        return ProducedSpeech(partial(transcribe_growing, self, options, unread, total_s, live))

    def talk(
        self,
        pieces: AsyncIterable[NDArray[Any]],
        sample_rate: int,
        /,
        *,
        task: str = "duplex",
        system: str = "",
        voice: str | RecordedVoice | None = None,
        fill_after_s: float | None = None,
        total_s: float | None = None,
        **options: Unpack[SpeechOptions],
    ) -> Speech:
        """Run a full-duplex session and return its events: speech and text arrive while audio is sent.

        The model generates one frame of speech for each frame of audio, until the audio ends.

        Args:
            system: Role of the model, if it accepts one.
            voice: Name of a voice, or a recording without a transcript; None for the model's default.
            pieces, sample_rate, fill_after_s, total_s: As for `transcribe_live`, and so is the option `resume_s`.
        """
        recording = voice.audio if isinstance(voice, RecordedVoice) else None
        named = voice if isinstance(voice, str) else None
        turns = [system_turn(system, recording)] if system or recording is not None else []
        texts = options_json({**options, "voice": named, "live": True})
        inputs = strings(task=task, messages=json.dumps(turns) if turns else None, options=texts)
        if recording is not None:
            inputs += audio_inputs(recording)
        unread = UnreadAudio(pieces, sample_rate, fill_after_s)
        return ProducedSpeech(self._live(inputs, unread, options.get("resume_s", 0.0), total_s))

    def _live(
        self, inputs: list[InferInput], unread: UnreadAudio, resume_s: float, total_s: float | None
    ) -> Callable[[Items], Awaitable[None]]:
        """Return a function that opens a live session with `inputs`, and puts its events into a queue."""
        # The server sends nothing during silence.
        total_s = total_s or self.timeouts.total_s
        waits = replace(self.timeouts, between_s=total_s, total_s=total_s)

        def resume(session: str, num_events: int, ends: bool) -> SpeechStream:
            record = {"id": session, "part": 0, "is_last": ends, "resume": num_events}
            return self.send(strings(session=json.dumps(record)), None, END if ends else waits)

        begin = partial(self.send, inputs, None, waits)
        return lambda items: LiveAudio(begin, resume, self.parts, unread, items).follow(resume_s)

    def converse(
        self,
        messages: list[dict[str, Any]],
        /,
        *recordings: Audio,
        images: Sequence[str | Path | bytes] = (),
        task: str | None = None,
        **options: Unpack[OptionsRecord],
    ) -> SpeechStream:
        """Send a conversation and return the events of the reply.

        Args:
            messages: Turns with `role` and `text`, `audio`, `image` or `codes`.
            recordings: Files for the turns with `"audio": "audio"`, in order, and samples for the one with `"pcm_in"`.
            images: Paths or contents of files for the turns with `"image": "image"`, in order.
            task: Name of the model's task; None for the first task that accepts these turns.
        """
        sharing = self._share()
        texts = strings(messages=json.dumps(messages), task=task, options=options_json(options))
        inputs = [*audio_inputs(*recordings, sharing=sharing), *image_inputs(images, sharing), *texts]
        return self.send(inputs, sharing)

    def send(
        self, inputs: list[InferInput], sharing: Sharing | None = None, timeouts: Timeouts | None = None
    ) -> SpeechStream:
        """Send a request and return its events.

        Args:
            sharing: Shared memory of the request, freed when the request ends.
        """

        async def requests() -> AsyncIterator[dict[str, Any]]:
            if sharing is not None:
                await sharing.register(self._client)
            yield {"model_name": self.model, "inputs": inputs}

        responses = self._client.stream_infer(requests(), headers=caller_headers(self.server, self._caller))
        return SpeechStream(responses, self, sharing, timeouts)

    def parts(self) -> PartStream:
        """Return a gRPC stream for parts of streamed text or live audio."""
        headers = caller_headers(self.server, self._caller)
        return PartStream(self._client, self.model, self.server, self.timeouts.between_s, headers)

    def release(self, sharing: Sharing) -> None:
        """Free an utterance's shared memory in the background; `close` frees whatever remains."""
        with suppress(RuntimeError):  # the stream was deleted after the event loop had stopped
            task = asyncio.get_running_loop().create_task(self._free(sharing))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def _share(self) -> Sharing | None:
        if self._memory is None:
            return None
        sharing = Sharing(self._memory, self._ring_size, key_headers(self.server))
        self._shared.add(sharing)
        return sharing

    async def _free(self, sharing: Sharing) -> None:
        self._shared.discard(sharing)
        with suppress(InferenceServerException, grpc.RpcError):  # the server may have stopped
            await sharing.close(self._client)

    async def ready(self) -> bool:
        """Return True if the server responds and the model accepts requests."""
        with suppress(InferenceServerException, grpc.RpcError):
            return bool(await self._client.is_server_ready() and await self._client.is_model_ready(self.model))
        return False

    async def server_name(self) -> str:
        """Return the server's name, JSON with model and revision; raise ClientError if no server answers."""
        return await fetch_name(self._client, self.server, self.timeouts.first_s)

    async def close(self) -> None:
        """Free all shared memory and close the connection."""
        await self._listeners.close()
        await asyncio.gather(*self._closing, *(self._free(sharing) for sharing in list(self._shared)))
        await self._client.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
