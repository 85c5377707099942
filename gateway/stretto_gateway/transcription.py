"""`POST /v1/audio/transcriptions`: what is said in a file, as text or with its times."""

import io
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from typing import Annotated, Any, Literal

import soundfile
from fastapi import APIRouter, Form, UploadFile
from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from stretto_client import ModelProfile, SpeechEvent
from stretto_gateway.api_error import refused
from stretto_gateway.caller import unless_gone
from stretto_gateway.catalogue import find_task
from stretto_gateway.events import told
from stretto_gateway.gateway import Gateway
from stretto_gateway.speech import sse, sse_error, usage
from stretto_gateway.speech_request import Body, Text
from stretto_gateway.streamed import Streamed

router = APIRouter()
FIELDS = {"audio": "file"}
TIMED = ("verbose_json", "srt", "vtt")


class TranscriptionForm(Body):
    """OpenAI's fields. `language` is what the caller knows of the file; no family here asks for it."""

    file: UploadFile
    model: Text = "whisper-1"
    language: Text | None = None
    prompt: Text | None = Field(default=None, description="refused: no family reads any before it listens")
    response_format: Literal["json", "text", "verbose_json", "srt", "vtt"] = "json"
    temperature: float | None = Field(default=None, ge=0, le=2, allow_inf_nan=False)
    stream: bool = False
    granularities: list[Literal["word", "segment"]] = Field(
        default=[], max_length=2, fail_fast=True, alias="timestamp_granularities[]"
    )

    def check(self, profile: ModelProfile) -> None:
        """ApiError for what this model cannot do."""
        if self.prompt:
            raise refused("prompt", f"none: {profile.family!r} reads nothing before it listens", self.prompt)
        if "word" in self.granularities:
            expected = f"segment: {profile.family!r} does not tell when the words of a recording are said"
            raise refused("timestamp_granularities", expected, "word")
        if self.granularities and self.response_format != "verbose_json":
            raise refused("timestamp_granularities", "none without response_format 'verbose_json'", self.granularities)
        if self.stream and self.response_format not in ("json", "text"):
            raise refused("response_format", "json or text of what is streamed", self.response_format)


@router.post("/v1/audio/transcriptions")
async def create_transcription(form: Annotated[TranscriptionForm, Form()], request: Request) -> Response:
    """The text of `file` (wav, flac, ogg or mp3); with `stream`, as server-sent events while it is written."""
    gateway: Gateway = request.app.state.gateway
    profile = await gateway.catalogue.model(form.model)
    find_task(profile, ("asr",), "write down what it hears")
    form.check(profile)
    content = await form.file.read()
    options = {} if form.temperature is None else {"temperature": form.temperature}
    if form.stream:
        return Streamed(sse_parts(gateway, content, options), "text/event-stream", gateway.limits.stall_s, sse_error)
    text, report = await unless_gone(request.receive, transcribed(gateway, content, options))
    if form.response_format == "json":
        return JSONResponse({"text": text, "usage": {"type": "tokens"} | usage(report)})
    if form.response_format == "text":
        return PlainTextResponse(text + "\n")
    return timed(form.response_format, text, duration_s(content))


async def transcribed(gateway: Gateway, content: bytes, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The text of a file, and the server's report."""
    async with written(gateway, content, options) as events:
        heard = [event async for event in events]
    return "".join(event.text for event in heard).strip(), heard[-1].report or {}


async def sse_parts(gateway: Gateway, content: bytes, options: dict[str, Any]) -> AsyncGenerator[bytes, None]:
    """`transcript.text.delta` events and `transcript.text.done`."""
    text, report = "", dict[str, Any]()
    async with written(gateway, content, options) as events:
        async for event in events:
            if event.text:
                text += event.text
                yield sse({"type": "transcript.text.delta", "delta": event.text})
            report = event.report or report
    yield sse({"type": "transcript.text.done", "text": text.strip(), "usage": {"type": "tokens"} | usage(report)})


@asynccontextmanager
async def written(
    gateway: Gateway, content: bytes, options: dict[str, Any]
) -> AsyncGenerator[AsyncGenerator[SpeechEvent, None], None]:
    """The events of a file being written down, which ends with the block."""
    async with (
        gateway.admission.place(),
        aclosing(told(gateway.client.transcribe(content, **options), FIELDS)) as events,
    ):
        yield events


def duration_s(content: bytes) -> float:
    """How long a recording is, by its header; the server has read it already."""
    return float(soundfile.info(io.BytesIO(content)).duration)


def timed(response_format: str, text: str, end_s: float) -> Response:
    """The text as one segment from the beginning to the end of the recording."""
    if response_format == "verbose_json":
        segment = {"id": 0, "start": 0.0, "end": end_s, "text": text}
        record = {"task": "transcribe", "language": "", "duration": end_s, "text": text, "segments": [segment]}
        return JSONResponse(record)
    if response_format == "srt":
        return PlainTextResponse(f"1\n{stamp(0, ',')} --> {stamp(end_s, ',')}\n{text}\n\n")
    return PlainTextResponse(f"WEBVTT\n\n{stamp(0, '.')} --> {stamp(end_s, '.')}\n{text}\n\n", media_type="text/vtt")


def stamp(seconds: float, point: str) -> str:
    """`hh:mm:ss`, the point, and milliseconds."""
    whole, thousandths = divmod(round(1000 * seconds), 1000)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}{point}{thousandths:03}"
