"""`POST /v1/audio/transcriptions` and `/v1/audio/translations`: what is said in a file, as text or with its times."""

import io
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from typing import Annotated, Any, Literal

import soundfile
from fastapi import APIRouter, UploadFile
from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from stretto_client import ModelProfile, SpeechEvent
from stretto_gateway.answers import PlainText, TimedText, described
from stretto_gateway.api_error import refused
from stretto_gateway.caller import unless_gone
from stretto_gateway.catalogue import find_task
from stretto_gateway.events import written
from stretto_gateway.gateway import Gateway
from stretto_gateway.speech import sse, sse_error, usage
from stretto_gateway.speech_request import WITH_FILE, Body, Text
from stretto_gateway.streamed import Streamed
from stretto_gateway.trace import Trace

router = APIRouter()
FIELDS = {"audio": "file"}
TEXTS = ("text/plain", "text/vtt")
TRANSCRIBE, TRANSLATE = "asr", "translate"  # the tasks of a family that can


class TranslationForm(Body):
    """OpenAI's fields of both."""

    file: UploadFile
    model: Text = "whisper-1"
    prompt: Text | None = Field(default=None, description="refused: no family reads any before it listens")
    response_format: Literal["json", "text", "verbose_json", "srt", "vtt"] = "json"
    temperature: float | None = Field(default=None, ge=0, le=2, allow_inf_nan=False)

    @property
    def options(self) -> dict[str, Any]:
        """What of it the server knows by the same name."""
        return {} if self.temperature is None else {"temperature": self.temperature}

    def check(self, profile: ModelProfile) -> None:
        """ApiError for what this model cannot do."""
        if self.prompt:
            raise refused("prompt", f"none: {profile.family!r} reads nothing before it listens", self.prompt)


class TranscriptionForm(TranslationForm):
    """OpenAI's fields. `language` is what the caller knows of the file; no family here asks for it."""

    language: Text | None = None
    stream: bool = False
    granularities: list[Literal["word", "segment"]] = Field(
        default=[], max_length=2, fail_fast=True, alias="timestamp_granularities[]"
    )

    def check(self, profile: ModelProfile) -> None:
        super().check(profile)
        if "word" in self.granularities:
            expected = f"segment: {profile.family!r} does not tell when the words of a recording are said"
            raise refused("timestamp_granularities", expected, "word")
        if self.granularities and self.response_format != "verbose_json":
            raise refused("timestamp_granularities", "none without response_format 'verbose_json'", self.granularities)
        if self.stream and self.response_format not in ("json", "text"):
            raise refused("response_format", "json or text of what is streamed", self.response_format)


WRITTEN = described("The text, or events with it", *TEXTS, "text/event-stream", model=PlainText | TimedText)
TRANSLATED = described("The text", *TEXTS, model=PlainText | TimedText)


@router.post("/v1/audio/transcriptions", response_class=Response, responses=WRITTEN)
async def create_transcription(form: Annotated[TranscriptionForm, WITH_FILE], request: Request) -> Response:
    """The text of `file` (wav, flac, ogg or mp3); with `stream`, as server-sent events while it is written."""
    gateway, content = await opened(form, request, TRANSCRIBE, "write down what it hears")
    if form.stream:
        parts = sse_parts(gateway, content, form.options)
        return Streamed(parts, "text/event-stream", gateway.limits.stall_s, sse_error)
    text, report = await unless_gone(request.receive, transcribed(gateway, content, TRANSCRIBE, form.options))
    if form.response_format == "json":
        return JSONResponse({"text": text, "usage": {"type": "tokens"} | usage(report)})
    return formed(form.response_format, text, content, {"task": "transcribe", "language": ""})


@router.post("/v1/audio/translations", response_class=Response, responses=TRANSLATED)
async def create_translation(form: Annotated[TranslationForm, WITH_FILE], request: Request) -> Response:
    """What is said in `file`, whatever the language, as English text."""
    gateway, content = await opened(form, request, TRANSLATE, "translate what it hears")
    text, _ = await unless_gone(request.receive, transcribed(gateway, content, TRANSLATE, form.options))
    return formed(form.response_format, text, content, {"task": "translate", "language": "english"})


async def opened(form: TranslationForm, request: Request, task: str, what: str) -> tuple[Gateway, bytes]:
    """The gateway and the file's bytes, where the model can do `task`, which is to `what`; ApiError where it cannot."""
    gateway: Gateway = request.app.state.gateway
    profile = await gateway.catalogue.model(form.model)
    find_task(profile, (task,), what)
    form.check(profile)
    return gateway, await form.file.read()


async def transcribed(
    gateway: Gateway, content: bytes, task: str, options: dict[str, Any]
) -> tuple[str, dict[str, Any]]:
    """The text of a file, and the server's report."""
    async with writing(gateway, content, task, options) as events:
        heard = [event async for event in events]
    return "".join(event.text for event in heard).strip(), heard[-1].report or {}


async def sse_parts(gateway: Gateway, content: bytes, options: dict[str, Any]) -> AsyncGenerator[bytes, None]:
    """`transcript.text.delta` events and `transcript.text.done`."""
    text, report = "", dict[str, Any]()
    async with writing(gateway, content, TRANSCRIBE, options) as events:
        async for event in events:
            if event.text:
                text += event.text
                yield sse({"type": "transcript.text.delta", "delta": event.text})
            report = event.report or report
    yield sse({"type": "transcript.text.done", "text": text.strip(), "usage": {"type": "tokens"} | usage(report)})


@asynccontextmanager
async def writing(
    gateway: Gateway, content: bytes, task: str, options: dict[str, Any]
) -> AsyncGenerator[AsyncGenerator[SpeechEvent, None], None]:
    """The events of a file being written down, which ends with the block."""
    trace = Trace(gateway.metrics, task)
    async with gateway.admission.place():
        stream = gateway.client.transcribe(content, task=task, **options)
        async with aclosing(written(stream, FIELDS, trace)) as events:
            yield events


def duration_s(content: bytes) -> float:
    """How long a recording is, by its header; the server has read it already."""
    return float(soundfile.info(io.BytesIO(content)).duration)


def formed(response_format: str, text: str, content: bytes, head: dict[str, Any]) -> Response:
    """The text of a recording in the form that was asked for: with times, as one segment from its beginning to its end.

    head: what the form `verbose_json` tells beside them.
    """
    match response_format:
        case "json":
            return JSONResponse({"text": text})
        case "text":
            return PlainTextResponse(text + "\n")
    end_s = duration_s(content)
    match response_format:
        case "srt":
            return PlainTextResponse(f"1\n{stamp(0, ',')} --> {stamp(end_s, ',')}\n{text}\n\n")
        case "vtt":
            cue = f"{stamp(0, '.')} --> {stamp(end_s, '.')}\n{text}\n\n"
            return PlainTextResponse(f"WEBVTT\n\n{cue}", media_type="text/vtt")
    segment = {"id": 0, "start": 0.0, "end": end_s, "text": text}
    return JSONResponse(head | {"duration": end_s, "text": text, "segments": [segment]})


def stamp(seconds: float, point: str) -> str:
    """`hh:mm:ss`, the point, and milliseconds."""
    whole, thousandths = divmod(round(1000 * seconds), 1000)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}{point}{thousandths:03}"
