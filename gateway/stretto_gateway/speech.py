"""`POST /v1/audio/speech`: text to speech, streamed chunk by chunk."""

import base64
import json
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Mapping
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import Any
from urllib.parse import quote

import numpy as np
from fastapi import APIRouter
from numpy.typing import NDArray
from starlette.datastructures import State
from starlette.requests import Request
from starlette.responses import Response

from stretto_client import ModelProfile, SpeakArguments, SpeechEvent, Word
from stretto_client.checked_speech import MAX_JUDGED_S, MAX_LATE
from stretto_client.markup import find_transliterated, find_unspoken
from stretto_client.recognisers import SELF
from stretto_contract.finish_reasons import Limit, limit_of
from stretto_gateway.admission import unless_disconnected
from stretto_gateway.answers import (
    FILE,
    TEXT,
    ApiError,
    described,
    mismatch,
    refused,
)
from stretto_gateway.catalogue import find_task, speaks, transcribes
from stretto_gateway.encoding import (
    GREATEST_SPEED,
    LEAST_SPEED,
    MEDIA_TYPES,
    RAW,
    Encoder,
    FfmpegEncoder,
    StretchedEncoder,
    TimeStretch,
    make_encoder,
)
from stretto_gateway.events import Streamed, closing, speech_events
from stretto_gateway.fields import Ignored, held_bytes
from stretto_gateway.gateway import Gateway
from stretto_gateway.metrics import SpeechTrace, generated_s
from stretto_gateway.model_server import served_model
from stretto_gateway.pronunciations import add_dictionary, keep_occurring
from stretto_gateway.receipt_draft import Draft
from stretto_gateway.response_headers import ResponseHeader
from stretto_gateway.speech_request import SpeechFields, SpeechItem, SpeechRequest
from stretto_gateway.turns import AUDIO
from stretto_gateway.usage import Use
from stretto_gateway.voices import choose_voice, marked_voices
from stretto_gateway.whole_file import WHOLE_HOLD_S, AudioBudget, parts_of, whole_file

router = APIRouter()
FILE_S = "file_s"
DRAFT = "draft"  # key of the receipt of a response
WHOLE = "whole"  # key of headers of a file that is sent once it is complete
CACHE = "cache"  # key of headers about the cache
TRANSLITERATED = "input.transliterated"
LISTED_LETTERS = 12  # letters of a transliterated word that are reported; each may become three `%XX` codes
MARKS = "*_[]().,:;!?…"  # around a stage direction
FIRST_SAMPLES = 2400  # samples that are encoded first; mp3 needs 1800 and aac 2160 before their first bytes
OF_THE_VOICE = ("messages[0].text", "messages[0].audio", "audio", "messages")  # the server's fields of a recorded voice
# Request fields, keyed by the server's field names.
FIELDS = {"text": "input", "text.voice": "input.voice", "messages[1].text": "input"}
FIELDS |= {"options.instruct": "instructions"}
WRITTEN_FIELDS = FIELDS | {"text": "text", "text.voice": "text.voice", "messages[1].text": "text"}  # for streamed text

ANSWERS = described("Audio, chunk by chunk, or events with audio", *MEDIA_TYPES.values(), schema=FILE)
ANSWERS[200]["content"]["text/event-stream"] = TEXT


@router.post("/v1/audio/speech", response_class=Response, responses=ANSWERS)
async def create_speech(body: SpeechRequest, request: Request) -> Response:
    """Generate the audio of `input`, chunk by chunk; if `stream_format` is `sse`, as server-sent events."""
    gateway: Gateway = await request.app.state.gateway.for_model(body.model, speaks)
    ignored = Ignored(body, gateway.strict)
    asked = speech_options(gateway, body, request.state, ignored)
    options = await unless_disconnected(request.receive, asked)
    if body.timestamps and body.stream_format != "sse":
        raise mismatch("timestamps", "false unless stream_format is 'sse'", "true")
    if body.word_timestamps and body.stream_format != "sse":
        ignored.add("word_timestamps", "false unless stream_format is 'sse'", True)
    body.timestamps = body.timestamps or (body.word_timestamps and body.stream_format == "sse")
    if body.timestamps and wants_alignment(await gateway.catalogue.profile()):
        options["words"] = "aligned"
    result: dict[str, Any] = {}
    if gateway.receipts is not None:
        result[DRAFT] = Draft(body.input, request.state.request_id, body.response_format, body.speed or 1.0)
    if body.stream_format == "sse":
        parts = sse_parts(gateway, body, options, ignored, result)
        return answered(gateway, body, request.state, parts, "text/event-stream", ignored, result, sse_error)
    parts = audio_parts(gateway, body, body.input, options, ignored, result)
    if body.stream is False and "stream_format" not in body.model_fields_set:
        options["hold_s"] = max(body.hold_s, WHOLE_HOLD_S)
        parts = whole_parts(gateway, body, request.state, parts, result)
    answer = answered(gateway, body, request.state, parts, MEDIA_TYPES[body.response_format], ignored, result)
    if body.response_format in RAW:
        answer.headers[ResponseHeader.SAMPLE_RATE] = str(body.rate)
    return answer


def answered(
    gateway: Gateway,
    item: SpeechFields,
    asked: State,
    parts: AsyncGenerator[bytes, None],
    media_type: str,
    ignored: Ignored,
    report: Mapping[str, Any],
    last_words: Callable[[ApiError], bytes] | None = None,
) -> Streamed:
    """Return the response of a speech request, whose outcome is recorded."""

    def first_headers() -> dict[str, str]:
        attempts = {} if item.check == "off" else {ResponseHeader.ATTEMPTS: str(report["attempts"])}
        noted = report.get(CACHE, {}) | report.get(WHOLE, {})
        return {**attempts, **marker_header(report), **noted, **ignored.headers}

    if gateway.receipts is not None and DRAFT in report:
        parts = gateway.receipts.followed(asked.owner, asked.request_id, parts, report[DRAFT])
    followed = gateway.outcomes.followed(asked.owner, asked.request_id, parts, report)
    return Streamed(followed, media_type, gateway.limits.stall_s, last_words, first_headers)


def marker_header(report: Mapping[str, Any]) -> dict[str, str]:
    """Return the header that names the marker of the audio; empty if the audio is not marked."""
    return {ResponseHeader.MARKER: report["marker"]} if "marker" in report else {}


async def speech_options(gateway: Gateway, item: SpeechItem, asked: State, ignored: Ignored) -> SpeakArguments:
    """Return `voice_options` for a complete text; raise ApiError if it is too long or has mode `open`."""
    if len(item.input) > gateway.limits.max_input_chars:
        expected = f"at most {gateway.limits.max_input_chars} characters"
        raise mismatch("input", expected, f"{len(item.input)} characters")
    text_mode = item.options.get("text_mode")
    if text_mode == "open":  # in mode `open`, the server would wait for more text
        raise refused("text_mode", "'whole' or 'streaming', because the text is complete", text_mode)
    return await voice_options(gateway, item, asked, ignored)


async def prepare_text(gateway: Gateway, text: str, options: SpeakArguments, ignored: Ignored) -> None:
    """Prepare the options for a complete text, and record in `ignored` the parts that are not spoken.

    The request must have a slot, because the time grows with the text. Entries of the dictionary that do not occur are
    removed from `options`.
    """
    markup = options.get("markup", "none")
    await keep_occurring(options, text, markup)
    profile = await gateway.catalogue.profile()
    unspoken = await find_unspoken(text, markup, profile.tags, profile.phonemes, has_rates=True)
    note_left_out(ignored, unspoken.tags)
    if "transliterate" in profile.options:
        note_transliterated(ignored, await find_transliterated(text, markup, profile.tags))
    for name in unspoken.elements:
        ignored.add(f"input.{name}", f"SSML without it ({profile.family!r} does not render it)", name)


def note_left_out(ignored: Ignored, names: Iterable[str]) -> None:
    """Record the tags and stage directions in a text that are not spoken; see `MarkupReader.left_out`."""
    for name in names:
        ignored.record(f"input.{name.strip(MARKS)}")


def note_transliterated(ignored: Ignored, words: Iterable[str]) -> None:
    """Record the words that are read in Latin letters, percent-encoded; see `Transliteration.words`."""
    for word in words:
        ignored.record(f"{TRANSLITERATED}.{quote(word[:LISTED_LETTERS])}")


async def voice_options(gateway: Gateway, item: SpeechFields, asked: State, ignored: Ignored) -> SpeakArguments:
    """Return the arguments of `SpeechClient.speak` except the text; raise ApiError if a field is not supported.

    Args:
        asked: Request state that the guard has set: the owner, and `keep`, which accounts for memory.
    """
    adapter = item.model if item.model and await gateway.catalogue.has_adapter(item.model) else None
    profile = await gateway.catalogue.model(item.model if adapter is None else "")
    find_task(profile, ("tts",), "text to speech")
    kept_s = item.hold_s + (MAX_JUDGED_S * (1 + MAX_LATE) if item.check == "words" else 0.0)
    asked.keep(held_bytes(item.options) + round(kept_s * item.rate) * np.int16().itemsize)
    if item.check == "words" and gateway.config.check_with is None:
        raise refused("check", "'off' or 'signals', because this gateway has no --check-with", item.check)
    if item.check == "words" and gateway.config.check_with == SELF and not transcribes(profile):
        raise refused("check", f"'off' or 'signals', because {profile.family!r} does not transcribe", item.check)
    if item.cache and gateway.cache is None:
        ignored.add("cache", "false or no value, because this gateway has no --speech-cache", item.cache)
    options = item.for_server(profile, ignored, await choose_voice(gateway, profile, item, asked, ignored))
    if adapter is not None:
        options.setdefault("adapter", adapter)
    options["check_with"] = gateway.config.check_with
    options["voices"] = marked_voices(gateway, profile, asked, "input" if isinstance(item, SpeechItem) else "text")
    await add_dictionary(gateway, profile, options, asked.owner, ignored)
    return options


async def timed_parts(
    gateway: Gateway,
    item: SpeechFields,
    text: str | AsyncIterable[str],
    options: SpeakArguments,
    ignored: Ignored,
    report: dict[str, Any],
) -> AsyncGenerator[bytes | list[dict[str, Any]], None]:
    """Yield the audio file for a text in parts as they become ready, and lists of its words with their times.

    A word comes before the audio in which it begins or, if words are aligned, after its clause.

    Args:
        ignored: Receives the tags in the text that are not spoken: before the first part if the text is complete.
        report: Receives the entries of `recalled` and `note_first` before the first part, and the server's report at
            the end. The entry FILE_S is the duration of the file so far, in seconds.
    """
    encoder = PacedEncoder(item, gateway.audio_tags)
    draft: Draft | None = report.get(DRAFT)
    async with recalled(gateway, item, text, options, ignored, report) as events:
        async for event in events:
            note_first(event, report)
            playing_time = encoder.playing_time(event)
            report[FILE_S] = max(report.get(FILE_S, 0.0), playing_time(event.start_s + event.duration_s))
            if event.words:
                yield [timed_word(word, playing_time) for word in event.words]
            if draft is not None:
                draft.add(event)
            async for data in encoder.parts(event):
                if draft is not None:
                    draft.add_data(data)
                yield data
            report.update(event.report or {})
    note_left_out(ignored, report.get("left_out", ()))
    note_transliterated(ignored, report.get("transliterated", ()))
    if tail := encoder.close():
        if draft is not None:
            draft.add_data(tail)
        yield tail


async def audio_parts(
    gateway: Gateway, item: SpeechFields, text: str, options: SpeakArguments, ignored: Ignored, report: dict[str, Any]
) -> AsyncGenerator[bytes, None]:
    """Yield the audio file for a text, in parts; the arguments are those of `timed_parts`."""
    async with closing(timed_parts(gateway, item, text, options, ignored, report)) as parts:
        async for piece in parts:
            if isinstance(piece, bytes):
                yield piece


async def whole_parts(
    gateway: Gateway, item: SpeechFields, asked: State, parts: AsyncGenerator[bytes, None], report: dict[str, Any]
) -> AsyncGenerator[bytes, None]:
    """Yield the file of `parts` once it is complete. Its length and token counts become headers in `report` (WHOLE)."""
    max_bytes = gateway.limits.max_batch_bytes
    excess = f"expected no value for more than {max_bytes} bytes of audio, got false"
    audio: bytes | bytearray = await whole_file(item, parts, AudioBudget(max_bytes, "stream", excess), asked)
    if gateway.receipts is not None:
        audio = await gateway.receipts.complete(audio, report[DRAFT], asked)
    counts = {ResponseHeader[name.upper()]: str(count) for name, count in usage(report).items()}
    report[WHOLE] = {"content-length": str(len(audio))} | counts
    async for data in parts_of(audio):
        yield data


def note_first(event: SpeechEvent, report: dict[str, Any]) -> None:
    """Record in `report` the name of the marker of an event, and the number of attempts so far."""
    if event.marker:
        report["marker"] = event.marker
    report["attempts"] = report.get("attempts", 1) + (event.redrawn_s is not None)


async def sse_parts(
    gateway: Gateway, item: SpeechRequest, options: SpeakArguments, ignored: Ignored, report: dict[str, Any]
) -> AsyncGenerator[bytes, None]:
    """Yield `speech.audio.delta` events, `speech.audio.words` if requested, and a final `speech.audio.done`.

    The last event lists the words without a time. `ignored` and `report` are filled as in `timed_parts`.
    """
    async with closing(timed_parts(gateway, item, item.input, options, ignored, report)) as parts:
        async for piece in parts:
            if isinstance(piece, bytes):
                yield sse({"type": "speech.audio.delta", "audio": base64.b64encode(piece).decode()})
            elif item.timestamps:
                yield sse({"type": "speech.audio.words", "words": piece})
    yield sse({"type": "speech.audio.done", "usage": usage(report)} | quality(report))


def quality(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flaws of the speech in a report: words without a time, a limit that ended it, and faults.

    `redrawn` is the number of abandoned attempts. `unchecked` has the reason for each clause whose words were
    not checked, and `transcripts` those of the clauses with the fault `words`. Empty entries are left out.
    """
    names = ("untimed_words", "faults", "redrawn", "unchecked", "transcripts")
    return limit_reason(report) | {name: report[name] for name in names if report.get(name)}


def limit_reason(report: Mapping[str, Any]) -> dict[str, Limit]:
    """Return `finish_reason` if a limit ended the text or the audio; empty if the model ended it."""
    limit = limit_of(report)
    return {} if limit is None else {"finish_reason": limit}


def wants_alignment(profile: ModelProfile) -> bool:
    """Return True if the server computes word times only on request."""
    return "words" in profile.options and not profile.times_words


def timed_word(word: Word, playing_time: Callable[[float], float] = float) -> dict[str, Any]:
    """Return a word for an event: its position in the text, and `start` and `end`, if known, in seconds of the file.

    `playing_time` converts seconds of the model's audio to seconds of the file.
    """
    end = {} if word.end_s is None else {"end": playing_time(word.end_s)}
    span = {} if word.text_start is None else {"text_start": word.text_start, "text_end": word.text_end}
    return {"word": word.word, "start": playing_time(word.start_s)} | end | span


class PacedEncoder:
    """Encoder of one file. Its speed is the request's speed times the event's speed (`SpeechEvent.speed`).

    Audio is stretched from one change of the speed to the next, so the file does not depend on the sizes of the events.
    """

    def __init__(self, item: SpeechFields, tags: Mapping[str, str]):
        self._item_speed = item.speed or 1.0
        self._rate = item.rate
        self._plain = make_encoder(item.response_format, item.rate, tags, item.bit_rate)
        self._encoder: Encoder = self._plain
        self._speed = 1.0
        self._since = (0.0, 0.0)  # time of the last change, in the model's audio and in the file

    def _speed_of(self, event: SpeechEvent) -> float:
        return min(max(self._item_speed * event.speed, LEAST_SPEED), GREATEST_SPEED)

    def playing_time(self, event: SpeechEvent) -> Callable[[float], float]:
        """Return the function from times in the audio of the next event to times in the file."""
        since = self._since
        speed = self._speed_of(event) if event.duration_s else self._speed
        if speed != self._speed:
            since = event.start_s, since[1] + (event.start_s - since[0]) / self._speed
        return lambda time_s: since[1] + (time_s - since[0]) / speed

    async def parts(self, event: SpeechEvent) -> AsyncIterator[bytes]:
        """Yield the bytes of the file that are ready after an event."""
        if event.pcm is not None and len(event.pcm) and (speed := self._speed_of(event)) != self._speed:
            self._since = event.start_s, self.playing_time(event)(event.start_s)
            if isinstance(self._encoder, StretchedEncoder) and (tail := await AUDIO.run(self._encoder.flush)):
                yield tail
            self._speed = speed
            is_plain = speed == 1.0
            self._encoder = self._plain if is_plain else StretchedEncoder(TimeStretch(speed, self._rate), self._plain)
        async for data in encoded_parts(self._encoder, event.pcm):
            yield data

    def close(self) -> bytes:
        """Return the rest of the file."""
        return self._encoder.close()


async def encoded_parts(encoder: Encoder, pcm: NDArray[Any] | None) -> AsyncIterator[bytes]:
    """Yield the bytes that are ready after samples `pcm`, int16 [n]; if `pcm` is None, yield nothing.

    The first FIRST_SAMPLES of an utterance are encoded and yielded before the rest, which does not change the bytes.
    """
    if pcm is None:
        return
    num_first = FIRST_SAMPLES if isinstance(encoder, FfmpegEncoder) and encoder.is_new else 0
    for piece in (pcm[:num_first], pcm[num_first:]):
        if data := await encoded(encoder, piece):
            yield data


async def encoded(encoder: Encoder, pcm: NDArray[Any]) -> bytes:
    """Encode samples `pcm`, int16 [n]. Slow encoders run in a thread, so that other requests continue."""
    assert pcm.dtype == np.int16, pcm.dtype
    if not len(pcm):
        return b""  # FFmpeg does not accept empty frames
    if isinstance(encoder, FfmpegEncoder | StretchedEncoder):
        return await AUDIO.run(encoder.encode, pcm)
    return encoder.encode(pcm)


def usage(report: dict[str, Any]) -> dict[str, int]:
    """Return the number of prompt rows, and the total number of generated text tokens and audio frames."""
    read = report.get("num_prompt_rows", 0)
    num_generated = report.get("num_text_tokens", 0) + report.get("num_frames", 0)
    return {"input_tokens": read, "output_tokens": num_generated, "total_tokens": read + num_generated}


def sse(record: dict[str, Any]) -> bytes:
    """Format a server-sent event."""
    return f"data: {json.dumps(record)}\n\n".encode()


def sse_error(error: ApiError) -> bytes:
    """Format the last event of a failed response."""
    return b"event: error\n" + sse({"type": "error"} | error.record())


@asynccontextmanager
async def spoken(
    gateway: Gateway,
    text: str | AsyncIterable[str],
    options: SpeakArguments,
    ignored: Ignored,
    voice_field: str = "voice",
) -> AsyncIterator[AsyncGenerator[SpeechEvent, None]]:
    """Yield the event stream of a spoken text; raise ApiError if it fails or has no audio."""
    trace = SpeechTrace(gateway.metrics, "tts")
    fields = (FIELDS if isinstance(text, str) else WRITTEN_FIELDS) | dict.fromkeys(OF_THE_VOICE, voice_field)
    use = gateway.metrics.usage.current
    async with gateway.slot():
        if isinstance(text, str):
            use.add("characters", len(text))
            await prepare_text(gateway, text, options, ignored)
        begin = partial(gateway.client.speak, text if isinstance(text, str) else use.counted(text), **options)
        queue = gateway.queue if isinstance(text, str) else None  # pieces of streamed text are read only once
        async with closing(speech_events(begin, fields, trace, queue)) as events:
            yield events


@asynccontextmanager
async def recalled(
    gateway: Gateway,
    item: SpeechFields,
    text: str | AsyncIterable[str],
    options: SpeakArguments,
    ignored: Ignored,
    report: dict[str, Any],
) -> AsyncIterator[AsyncGenerator[SpeechEvent, None]]:
    """Yield the event stream of a text: from the cache if possible, otherwise generated as in `spoken` and then stored.

    Speech from the cache needs no slot. It counts as use like any other, and not in the metrics of generation. If the
    request uses the cache, `report` receives headers about it as CACHE.
    """
    options = {**options, "rates": True}
    draft: Draft | None = report.get(DRAFT)
    if draft is not None:
        if (await gateway.catalogue.profile()).has_codes:
            options["output"] = {"codes": True}
        draft.begin(await served_model(gateway.client), options)
    cache = gateway.cache
    request = None
    if cache is not None and isinstance(text, str):
        request = await cache.request(gateway.client, item.cache, text, options)
    if cache is None or request is None or not isinstance(text, str):
        async with spoken(gateway, text, options, ignored, item.voice_field) as events:
            yield events
        return
    with cache.reading(request) as entry:
        if entry is not None:
            report[CACHE] = {ResponseHeader.CACHE: "hit", ResponseHeader.AGE: str(int(cache.age_s(entry)))}
            use = gateway.metrics.usage.current
            use.check()
            await prepare_text(gateway, text, options, ignored)
            async with aclosing(counted(use, len(text), cache.replay(entry))) as events:
                yield events
            return
    report[CACHE] = {ResponseHeader.CACHE: "miss"}
    async with (
        spoken(gateway, text, options, ignored, item.voice_field) as spoken_events,
        aclosing(cache.record(request, spoken_events)) as events,
    ):
        yield events


async def counted(
    use: Use, num_chars: int, events: AsyncGenerator[SpeechEvent, None]
) -> AsyncGenerator[SpeechEvent, None]:
    """Yield events of stored speech, and count them as the caller's use; see `Gateway.slot`."""
    use.add("requests", 1)
    use.add("characters", num_chars)
    async with aclosing(events):
        async for event in events:
            use.add("output_audio_s", generated_s(event))
            use.add("input_audio_s", (event.report or {}).get("input_audio_s", 0.0))
            yield event
