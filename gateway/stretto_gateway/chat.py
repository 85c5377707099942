"""`POST /v1/chat/completions`: a turn of a conversation, answered in text or in speech."""

import base64
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from stretto_client import SpeechEvent
from stretto_gateway.answers import Completion, described
from stretto_gateway.api_error import refused
from stretto_gateway.caller import unless_gone
from stretto_gateway.catalogue import find_voice
from stretto_gateway.chat_request import ChatRequest, conversing_task, read_conversation
from stretto_gateway.encoding import DEFAULT_RATE, make_encoder
from stretto_gateway.events import followed
from stretto_gateway.gateway import Gateway
from stretto_gateway.ignored import Ignored
from stretto_gateway.speech import encoded, sse, sse_error, usage
from stretto_gateway.streamed import Streamed
from stretto_gateway.trace import SpeechTrace, Trace

router = APIRouter()
AUDIO_KEPT_S = 3600  # for `expires_at` only: the audio is in the response and is not stored
FINISH = {"length": "length"}  # OpenAI's finish reasons by the server's; others become `stop`

ANSWERS = described("The reply, or events with its chunks", "text/event-stream", model=Completion)


@router.post("/v1/chat/completions", response_class=Response, responses=ANSWERS)
async def create_completion(body: ChatRequest, request: Request) -> Response:
    """Generate the reply to `messages`; with `audio` among the `modalities`, as speech."""
    gateway: Gateway = request.app.state.gateway
    ignored = Ignored(body, gateway.strict)
    profile = await gateway.catalogue.model(body.model)
    conversation = read_conversation(body.messages, gateway.limits.max_input_chars)
    speaks = "audio" in body.modalities
    task = conversing_task(profile, conversation.kinds(), speaks)
    if body.stream and speaks and body.audio.format != "pcm16":
        raise refused("audio.format", "pcm16 of what is streamed", body.audio.format)
    options = body.options() | {"task": task.name}
    if speaks:
        form = {"encoding": "pcm_s16le", "sample_rate": DEFAULT_RATE}
        options |= {"voice": find_voice(profile, body.audio.voice), "output": form}
    events = reply(gateway, conversation.turns, conversation.files, options, speaks)
    head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": profile.family}
    if body.stream:
        parts = stream_parts(events, head, speaks)
        answer: Response = Streamed(parts, "text/event-stream", gateway.limits.stall_s, sse_error)
    else:
        answer = JSONResponse(head | await unless_gone(request.receive, completion(events, body)))
    answer.headers.update(ignored.headers)
    return answer


async def reply(
    gateway: Gateway, turns: list[dict[str, Any]], files: list[bytes], options: dict[str, Any], speaks: bool
) -> AsyncGenerator[SpeechEvent, None]:
    """Yield the events of the reply; raise ApiError if it fails."""
    trace = (SpeechTrace if speaks else Trace)(gateway.metrics, options["task"])
    async with gateway.admission.place():
        stream = gateway.client.converse(turns, *files, **options)
        async with aclosing(followed(stream, {}, trace)) as events:
            async for event in events:
                yield event


async def completion(events: AsyncGenerator[SpeechEvent, None], body: ChatRequest) -> dict[str, Any]:
    """Return the whole reply."""
    name = "pcm" if body.audio.format == "pcm16" else body.audio.format
    encoder, audio = make_encoder(name, DEFAULT_RATE), bytearray()
    text, report = "", dict[str, Any]()
    async with aclosing(events):
        async for event in events:
            text += event.text
            report = event.report or report
            if event.pcm is not None:
                audio += await encoded(encoder, event.pcm)
    message: dict[str, Any] = {"role": "assistant", "content": text.strip()}
    if "audio" in body.modalities:
        sound = base64.b64encode(audio + encoder.close()).decode()
        message |= {"content": None, "audio": audio_head() | {"data": sound, "transcript": text.strip()}}
    choice = {"index": 0, "message": message, "finish_reason": finish(report), "logprobs": None}
    return {"object": "chat.completion", "choices": [choice], "usage": chat_usage(report)}


async def stream_parts(
    events: AsyncGenerator[SpeechEvent, None], head: dict[str, Any], speaks: bool
) -> AsyncGenerator[bytes, None]:
    """Yield the reply as `chat.completion.chunk` events; the text of a spoken reply is its transcript."""
    head = head | {"object": "chat.completion.chunk"}
    sound_id, report = audio_head()["id"], dict[str, Any]()
    said: dict[str, Any] = {"role": "assistant"}
    encoder = make_encoder("pcm", DEFAULT_RATE)
    async with aclosing(events):
        async for event in events:
            report = event.report or report
            if speaks and event.text:
                said["audio"] = {"id": sound_id, "transcript": event.text}
            elif event.text:
                said["content"] = event.text
            if event.pcm is not None and len(event.pcm):
                data = base64.b64encode(await encoded(encoder, event.pcm)).decode()
                said["audio"] = said.get("audio", {"id": sound_id}) | {"data": data}
            if said:
                yield sse(head | {"choices": [choice(said)]})
            said = {}
    yield sse(head | {"choices": [choice({}, finish(report))], "usage": chat_usage(report)})
    yield b"data: [DONE]\n\n"


def choice(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    """Return the only choice of a chunk."""
    return {"index": 0, "delta": delta, "finish_reason": reason}


def audio_head() -> dict[str, Any]:
    """Return the fields of an audio object that OpenAI's API requires."""
    return {"id": f"audio_{secrets.token_hex(12)}", "expires_at": int(time.time()) + AUDIO_KEPT_S}


def finish(report: dict[str, Any]) -> str:
    """Return OpenAI's finish reason."""
    return FINISH.get(report.get("finish_reason", ""), "stop")


def chat_usage(report: dict[str, Any]) -> dict[str, int]:
    """Return the usage under the field names of chat completions."""
    rows = usage(report)
    counts = {"prompt_tokens": rows["input_tokens"], "completion_tokens": rows["output_tokens"]}
    return counts | {"total_tokens": rows["total_tokens"]}
