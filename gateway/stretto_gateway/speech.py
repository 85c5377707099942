"""`POST /v1/audio/speech`: a text as sound, from the first chunk on."""

import asyncio
import base64
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import numpy as np
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from stretto_client import ClientError, Speech, SpeechEvent
from stretto_gateway.api_error import ApiError, from_client_error, refused
from stretto_gateway.catalogue import find_task
from stretto_gateway.encoding import MEDIA_TYPES, FfmpegEncoder, make_encoder
from stretto_gateway.gateway import Gateway
from stretto_gateway.speech_request import SpeechOptions, SpeechRequest
from stretto_gateway.streamed import Streamed

router = APIRouter()
FIELDS = {"text": "input"}  # what those of the server are called here


@router.post("/v1/audio/speech")
async def create_speech(body: SpeechRequest, request: Request) -> Response:
    """The audio of `input`, chunk by chunk; as server-sent events with `stream_format` `sse`."""
    gateway: Gateway = request.app.state.gateway
    arguments = await speech_arguments(gateway, body, body.input)
    if body.timestamps and body.stream_format != "sse":
        raise refused("timestamps", "none without stream_format 'sse', which has room for them", True)
    if body.stream_format == "sse":
        parts = sse_parts(gateway, body, arguments)
        return Streamed(parts, "text/event-stream", gateway.limits.stall_s, sse_error)
    parts = audio_parts(gateway, body, arguments)
    return Streamed(parts, MEDIA_TYPES[body.response_format], gateway.limits.stall_s)


async def speech_arguments(gateway: Gateway, options: SpeechOptions, text: str) -> dict[str, Any]:
    """What `SpeechClient.speak` is to be told; ApiError for what this gateway, or this model, does not do."""
    profile = await gateway.catalogue.model(options.model)
    find_task(profile, ("tts",), "speak a text as it stands")
    if len(text) > gateway.limits.max_input_chars:
        raise refused("input", f"at most {gateway.limits.max_input_chars} characters", f"{len(text)} characters")
    return {"text": text} | options.for_server(profile)


async def audio_parts(
    gateway: Gateway, options: SpeechOptions, arguments: dict[str, Any]
) -> AsyncGenerator[bytes, None]:
    """The bytes of the file, as they come."""
    encoder = make_encoder(options.response_format, options.sample_rate)
    is_slow = isinstance(encoder, FfmpegEncoder)  # a second of sound takes milliseconds, in which others wait
    async with spoken(gateway, arguments) as events:
        async for event in events:
            if event.pcm is not None:
                samples = as_int16(event.pcm)
                if part := await asyncio.to_thread(encoder.encode, samples) if is_slow else encoder.encode(samples):
                    yield part
    if rest := encoder.close():
        yield rest


async def sse_parts(gateway: Gateway, options: SpeechRequest, arguments: dict[str, Any]) -> AsyncGenerator[bytes, None]:
    """The same as `speech.audio.delta` events, words before the sound that they begin in, and `speech.audio.done`."""
    encoder = make_encoder(options.response_format, options.sample_rate)
    report: dict[str, Any] = {}
    async with spoken(gateway, arguments) as events:
        async for event in events:
            if options.timestamps and event.words:
                words = [{"word": word.word, "start": word.start_s} for word in event.words]
                yield sse({"type": "speech.audio.words", "words": words})
            if event.pcm is not None and (part := await asyncio.to_thread(encoder.encode, as_int16(event.pcm))):
                yield sse(delta(part))
            report = event.report or report
    if rest := encoder.close():
        yield sse(delta(rest))
    yield sse({"type": "speech.audio.done", "usage": usage(report)})


def as_int16(pcm: np.ndarray) -> np.ndarray:
    """Samples [n] int16, as the server was asked for."""
    assert pcm.dtype == np.int16, pcm.dtype
    return pcm


def delta(part: bytes) -> dict[str, str]:
    """The event of some audio."""
    return {"type": "speech.audio.delta", "audio": base64.b64encode(part).decode()}


def usage(report: dict[str, Any]) -> dict[str, int]:
    """What was read and made, in rows of the model: those of the prompt, and its text and its frames."""
    read, made = report.get("num_prompt_rows", 0), report.get("num_text_tokens", 0) + report.get("num_frames", 0)
    return {"input_tokens": read, "output_tokens": made, "total_tokens": read + made}


def sse(record: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return f"data: {json.dumps(record)}\n\n".encode()


def sse_error(error: ApiError) -> bytes:
    """The last event of an answer that cannot go on."""
    return b"event: error\n" + sse({"type": "error"} | error.record())


@asynccontextmanager
async def spoken(gateway: Gateway, arguments: dict[str, Any]) -> AsyncIterator[AsyncGenerator[SpeechEvent, None]]:
    """The events of the speech, which ends with the block; ApiError where it fails, or is no sound at all."""
    async with gateway.admission.place():
        text = arguments["text"]
        rest = {name: value for name, value in arguments.items() if name != "text"}
        async with gateway.client.speak(text, **rest) as speech, aclosing(heard(gateway, speech)) as events:
            yield events


async def heard(gateway: Gateway, speech: Speech) -> AsyncGenerator[SpeechEvent, None]:
    """The events, counted."""
    trace = gateway.metrics.trace("tts")
    try:
        async for event in speech:
            trace.add(event)
            yield event
    except ClientError as error:
        raise from_client_error(error, FIELDS) from None
    finally:
        trace.close()
    if not trace.has_sound:
        raise ApiError(502, "the model has said nothing", code="no_audio")
