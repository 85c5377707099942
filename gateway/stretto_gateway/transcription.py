"""`POST /v1/audio/transcriptions` and `/v1/audio/translations`: text for the speech in a file."""

import zlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from stretto_client import ModelProfile, Passage, SpeechEvent, TaskProfile, TranscriptionOptions
from stretto_contract.finish_reasons import limit_of
from stretto_contract.languages import AUTO, code_name
from stretto_contract.schema import Temperature
from stretto_gateway import g711
from stretto_gateway.admission import unless_disconnected
from stretto_gateway.answers import (
    DiarizedText,
    PlainText,
    SpokenSegment,
    TextSegment,
    TimedText,
    described,
    mismatch,
    refused,
)
from stretto_gateway.catalogue import find_task, transcribes
from stretto_gateway.events import Streamed, closing, text_events
from stretto_gateway.fields import MAX_SHOWN_CHARS, Ignored, Text, TextFields
from stretto_gateway.gateway import Gateway
from stretto_gateway.metrics import Trace
from stretto_gateway.response_headers import ResponseHeader
from stretto_gateway.speech import limit_reason, sse, sse_error, timed_word, usage
from stretto_gateway.speech_request import WITH_FILE, File

router = APIRouter()
FIELDS = {
    "audio": "file",
    "messages[1].audio": "file",
    "messages[0].text": "prompt",
    "options.words": "timestamp_granularities",
}
TEXTS = ("text/plain", "text/vtt")
DIARIZED = "diarized_json"
STREAMED = ("json", "text", DIARIZED)  # response formats of a stream
# names of the families' tasks
TRANSCRIBE = "asr"
TRANSLATE = "translate"
# Media types of files that consist of bytes of G.711 without a header.
RAW_TYPES: dict[str, g711.Law] = {
    "audio/basic": "mulaw",
    "audio/pcmu": "mulaw",
    "audio/mulaw": "mulaw",
    "audio/x-mulaw": "mulaw",
    "audio/pcma": "alaw",
    "audio/alaw": "alaw",
    "audio/x-alaw": "alaw",
}
CONTAINERS = (b"RIFF", b".snd")  # first bytes of WAV and Sun files, which programs also call `audio/basic`


class RecordingForm(TextFields):
    """Fields that OpenAI's translation and transcription requests have in common."""

    file: File
    model: Text = "whisper-1"
    prompt: Text | None = Field(
        default=None, description="words that may occur in the recording; most models ignore it"
    )
    temperature: Temperature | None = None
    max_completion_tokens: int | None = Field(default=None, ge=1, description="longest text, in rows of the model")

    def options(self, task: TaskProfile, ignored: Ignored) -> TranscriptionOptions:
        """Return the server's options; add fields without effect to `ignored`."""
        options: TranscriptionOptions = {} if self.temperature is None else {"temperature": self.temperature}
        if self.prompt and "text" in task.system:
            options["system"] = self.prompt
        elif self.prompt:
            ignored.add("prompt", "no value (this model does not use a prompt for transcription)", self.prompt)
        limit = self.max_completion_tokens
        if limit is not None and not task.max_text_rows:
            ignored.add("max_completion_tokens", "no value (the server does not report its longest text)", limit)
        elif limit is not None and limit < task.max_text_rows:
            options["text"] = {"max_rows": limit}
        return options

    def check(self) -> None:
        """Raise ApiError if fields contradict each other."""


class TranslationForm(RecordingForm):
    """Fields of OpenAI's translation requests."""

    response_format: Literal["json", "text", "verbose_json", "srt", "vtt"] = "json"


class TranscriptionForm(RecordingForm):
    """Fields of OpenAI's transcription requests, and options for vLLM's additional event fields."""

    response_format: Literal["json", "text", "verbose_json", "diarized_json", "srt", "vtt"] = "json"
    language: Text | None = Field(default=None, description="language of the recording; most models ignore it")
    stream: bool = False
    granularities: list[Literal["word", "segment"]] = Field(
        default=[], max_length=2, fail_fast=True, alias="timestamp_granularities[]"
    )
    stream_include_usage: bool | None = Field(default=None, description="events also have vLLM's `choices` and `usage`")
    stream_continuous_usage_stats: bool | None = Field(default=None, description="no effect")

    def align(self, profile: ModelProfile, options: TranscriptionOptions, ignored: Ignored) -> bool:
        """Request word times if the form asks for them; return True if the model itself reports them."""
        task = profile.task(TRANSCRIBE)
        if "word" in self.granularities and task is not None and task.times_words:
            return True
        if "word" in self.granularities and "words" in profile.options:
            options["words"] = "aligned"
        elif "word" in self.granularities:
            ignored.add("timestamp_granularities", "segment (this server has no aligner for words)", "word")
        return False

    def check(self) -> None:
        if self.granularities and self.response_format != "verbose_json":
            raise refused(
                "timestamp_granularities", "no value unless response_format is 'verbose_json'", self.granularities
            )
        if self.stream and self.response_format not in STREAMED:
            raise refused("response_format", f"{' or '.join(STREAMED)}, because stream is true", self.response_format)

    def hint_language(self, profile: ModelProfile, options: TranscriptionOptions, ignored: Ignored) -> None:
        """Add `language` to the options; if it has no effect, record it as ignored unless it is the only language.

        Even a strict gateway accepts any language.
        """
        name = language_hint(profile, self.language)
        if name:
            options["language"] = name
        is_only = {code_name(language) for language in profile.languages} == {code_name(self.language or AUTO)}
        if self.language and not name and not is_only:
            ignored.record("language")

    def spoken_language(self, profile: ModelProfile) -> str:
        """Return the English name of the transcript's language, in lower case; empty if it is unknown.

        It is known if the model has only one, or if the request names one that the model may have.
        """
        codes = {code_name(language) for language in profile.languages}
        if len(codes) == 1:
            return codes.pop()
        named = code_name(self.language) if self.language else AUTO
        return named if named != AUTO and (not codes or named in codes) else ""


def language_hint(profile: ModelProfile, language: str | None) -> str:
    """Return the name of a recording's language for the model; empty if it does not read or know the language."""
    task = profile.task(TRANSCRIBE)
    name = code_name(language or "")
    return name if task is not None and task.reads_language and name in profile.languages else ""


WRITTEN = described(
    "Text, or events with text", *TEXTS, "text/event-stream", model=PlainText | TimedText | DiarizedText
)
TRANSLATED = described("The text", *TEXTS, model=PlainText | TimedText)


@router.post("/v1/audio/transcriptions", response_class=Response, responses=WRITTEN)
async def create_transcription(form: Annotated[TranscriptionForm, WITH_FILE], request: Request) -> Response:
    """Transcribe a wav, flac, ogg, mp3, aiff, caf, webm, m4a, mp4 or aac file; with `stream`, as server-sent events."""
    gateway: Gateway = await request.app.state.gateway.for_model(form.model, transcribes)
    ignored = Ignored(form, gateway.strict)
    content, options = await read_form(gateway, form, TRANSCRIBE, "transcription", ignored)
    profile = await gateway.catalogue.profile()
    form.hint_language(profile, options, ignored)
    times_words = form.align(profile, options, ignored)
    if form.stream:
        parts = sse_parts(gateway, content, options, bool(form.stream_include_usage), form.response_format == DIARIZED)
        answer: Response = Streamed(parts, "text/event-stream", gateway.limits.stall_s, sse_error)
    else:
        transcript = await unless_disconnected(request.receive, transcribed(gateway, content, TRANSCRIBE, options))
        report = transcript.report
        if form.response_format in ("json", DIARIZED):
            record = {"text": transcript.text, "usage": {"type": "tokens"} | usage(report)} | limit_reason(report)
            if form.response_format == DIARIZED:
                record |= diarized(transcript)
            answer = JSONResponse(record, headers=limit_header(report))
        else:
            language = report.get("language") or form.spoken_language(profile)
            head: dict[str, Any] = {"task": "transcribe", "language": language} | (
                {"words": transcript.words} if times_words or report.get("aligned") else {}
            )
            if report.get("aligned") is False:
                head["untimed_words"] = report.get("untimed_words", transcript.text.split())
            answer = transcript_response(form.response_format, transcript, head, form.temperature)
    answer.headers.update(ignored.headers)
    return answer


@router.post("/v1/audio/translations", response_class=Response, responses=TRANSLATED)
async def create_translation(form: Annotated[TranslationForm, WITH_FILE], request: Request) -> Response:
    """Translate the speech in `file`, in any language, into English text."""
    gateway: Gateway = await request.app.state.gateway.for_model(form.model, translates)
    ignored = Ignored(form, gateway.strict)
    content, options = await read_form(gateway, form, TRANSLATE, "translation of speech", ignored)
    transcript = await unless_disconnected(request.receive, transcribed(gateway, content, TRANSLATE, options))
    head = {"task": "translate", "language": "english"}
    answer = transcript_response(form.response_format, transcript, head, form.temperature)
    answer.headers.update(ignored.headers)
    return answer


def translates(profile: ModelProfile) -> bool:
    """Return True if the model translates speech."""
    return profile.task(TRANSLATE) is not None


async def read_form(
    gateway: Gateway, form: RecordingForm, task: str, what: str, ignored: Ignored
) -> tuple[bytes, TranscriptionOptions]:
    """Return the file's contents and the server's options; raise ApiError if the model cannot do the task."""
    profile = await gateway.catalogue.model(form.model)
    found_task = find_task(profile, (task,), what)
    form.check()
    options = form.options(found_task, ignored)
    options["task"] = task
    return readable(await form.file.read(), form.file.content_type or ""), options


def readable(content: bytes, content_type: str) -> bytes:
    """Return `content` as a file that the server can read: G.711 without a header becomes a WAV file.

    ApiError is raised if `content_type` has a rate other than 8000 Hz, or several channels, for G.711.
    """
    media_type, *parameters = (word.strip().lower() for word in content_type.split(";"))
    law = RAW_TYPES.get(media_type)
    if law is None or not content or content.startswith(CONTAINERS):
        return content
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        expected = {"rate": str(g711.RATE), "channels": "1"}.get(name)
        if expected is not None and value.strip('"') != expected:
            raise mismatch("file", f"{media_type} with {name}={expected}", f"{name}={value[:MAX_SHOWN_CHARS]}")
    return g711.wav_file(law, content)


@dataclass(frozen=True, slots=True)
class Transcript:
    """Text of a recording.

    Attributes:
        words: Words with their times, if the model or an aligner reports them.
        passages: Passages with their times and speakers; empty if the model does not report them.
    """

    text: str
    report: dict[str, Any]
    words: list[dict[str, Any]] = field(default_factory=list)
    passages: tuple[Passage, ...] = ()

    @property
    def duration_s(self) -> float:
        """Duration of the recording in seconds."""
        return float(self.report.get("input_audio_s", 0.0))

    @property
    def timed(self) -> tuple[Passage, ...]:
        """The passages, or one passage with the whole text; empty if the recording has no words."""
        whole = (Passage(self.text, 0.0, self.duration_s),) if self.text else ()
        return self.passages or whole


async def transcribed(gateway: Gateway, content: bytes, task: str, options: TranscriptionOptions) -> Transcript:
    """Transcribe a file."""
    async with writing(gateway, content, task, options) as events:
        received = [event async for event in events]
    words = [timed_word(word) for event in received for word in event.words]
    passages = tuple(passage for event in received for passage in event.passages)
    return Transcript("".join(event.text for event in received).strip(), received[-1].report or {}, words, passages)


def diarized(transcript: Transcript) -> dict[str, Any]:
    """Return the fields of `diarized_json` that `json` does not have."""
    segments = [spoken_segment(number, passage) for number, passage in enumerate(transcript.timed)]
    return {"task": "transcribe", "duration": transcript.duration_s, "segments": segments}


def spoken_segment(number: int, passage: Passage) -> SpokenSegment:
    """Return a passage as a segment of `diarized_json` and of its event; an unknown speaker is an empty string."""
    return {
        "type": "transcript.text.segment",
        "id": f"seg_{number}",
        "start": passage.start_s,
        "end": passage.end_s,
        "text": passage.text,
        "speaker": passage.speaker,
    }


async def sse_parts(
    gateway: Gateway, content: bytes, options: TranscriptionOptions, is_vllms: bool, is_diarized: bool
) -> AsyncGenerator[bytes, None]:
    """Yield `transcript.text.delta` events and a final `transcript.text.done`.

    Args:
        is_vllms: True to add vLLM's fields for text and usage to each event.
        is_diarized: True to add a `transcript.text.segment` for each passage.
    """
    text = ""
    num_passages = 0
    report = dict[str, Any]()
    async with writing(gateway, content, TRANSCRIBE, options) as events:
        async for event in events:
            if event.text:
                text += event.text
                choices = {"choices": [{"index": 0, "delta": {"content": event.text}}]} if is_vllms else {}
                yield sse({"type": "transcript.text.delta", "delta": event.text} | choices)
            for passage in event.passages if is_diarized else ():
                yield sse(dict(spoken_segment(num_passages, passage)))
                num_passages += 1
            report = event.report or report
    if is_diarized and not num_passages:
        for passage in Transcript(text.strip(), report).timed:
            yield sse(dict(spoken_segment(0, passage)))
    counts = {"type": "tokens"} | usage(report)
    if is_vllms:
        counts |= {"prompt_tokens": counts["input_tokens"], "completion_tokens": counts["output_tokens"]}
    end: dict[str, Any] = {"type": "transcript.text.done", "text": text.strip(), "usage": counts}
    if is_vllms:
        reason = report.get("finish_reason", "stop")
        end["choices"] = [{"index": 0, "delta": {"content": ""}, "finish_reason": reason}]
    yield sse(end | limit_reason(report))


@asynccontextmanager
async def writing(
    gateway: Gateway, content: bytes, task: str, options: TranscriptionOptions
) -> AsyncGenerator[AsyncGenerator[SpeechEvent, None], None]:
    """Yield the event stream that transcribes a file, and close it at the end of the `with` block."""
    trace = Trace(gateway.metrics, task)
    async with gateway.slot():
        begin = partial(gateway.client.transcribe, content, **options)
        async with closing(text_events(begin, FIELDS, trace, gateway.queue)) as events:
            yield events


def transcript_response(
    response_format: str, transcript: Transcript, head: dict[str, Any], temperature: float | None = None
) -> Response:
    """Return a transcript in the requested response format; `head` has additional fields for `verbose_json`."""
    reason = limit_reason(transcript.report)
    headers = limit_header(transcript.report)
    text = transcript.text
    match response_format:
        case "json":
            return JSONResponse({"text": text} | reason, headers=headers)
        case "text":
            return PlainTextResponse(text + "\n", headers=headers)
        case "srt":
            cues = (f"{number}\n{cue(passage, ',')}" for number, passage in enumerate(transcript.timed, 1))
            return PlainTextResponse("".join(cues), headers=headers)
        case "vtt":
            cues = (cue(passage, ".") for passage in transcript.timed)
            note = f"NOTE finish_reason: {reason['finish_reason']}\n\n" if reason else ""
            return PlainTextResponse(f"WEBVTT\n\n{''.join(cues)}{note}", headers=headers, media_type="text/vtt")
    segments = [text_segment(number, passage, temperature) for number, passage in enumerate(transcript.timed)]
    record = {"duration": transcript.duration_s, "text": text, "segments": segments}
    return JSONResponse(head | record | reason, headers=headers)


def cue(passage: Passage, point: str) -> str:
    """Return a cue of subtitles, without its number, with the decimal mark `point`."""
    text = " ".join(passage.text.split())  # a blank line or an arrow would end the cue
    return f"{stamp(passage.start_s, point)} --> {stamp(passage.end_s, point)}\n{text.replace('-->', '->')}\n\n"


def limit_header(report: dict[str, Any]) -> dict[str, str]:
    """Return the response header that reports that a limit ended the transcript; empty if none did."""
    limit = limit_of(report)
    return {} if limit is None else {ResponseHeader.FINISH_REASON: limit}


def text_segment(number: int, passage: Passage, temperature: float | None) -> TextSegment:
    """Return a segment of a transcript. Numbers that no model reports are 0 and listed in `unmeasured`."""
    content = passage.text.encode(errors="replace")
    unmeasured = ["tokens", "avg_logprob", "no_speech_prob"]
    if temperature is None:
        unmeasured.append("temperature")
    return {
        "id": number,
        "seek": 0,
        "start": passage.start_s,
        "end": passage.end_s,
        "text": passage.text,
        "tokens": [],
        "temperature": temperature or 0.0,
        "avg_logprob": 0.0,
        "compression_ratio": len(content) / len(zlib.compress(content)),  # as Whisper computes it
        "no_speech_prob": 0.0,
        "unmeasured": unmeasured,
    }


def stamp(seconds: float, point: str) -> str:
    """Format a time as `hh:mm:ss`, the decimal mark `point`, and milliseconds."""
    whole, thousandths = divmod(round(1000 * seconds), 1000)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}{point}{thousandths:03}"
