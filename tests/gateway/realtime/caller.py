"""Caller of the realtime API that checks every event against the types in OpenAI's package."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import openai
import soundfile
import soxr
from openai.resources.realtime.realtime import AsyncRealtimeConnection
from openai.types.realtime import (
    RealtimeServerEvent,
    RealtimeSessionCreateResponse,
    RealtimeTranscriptionSessionCreateResponse,
)
from pydantic import BaseModel, TypeAdapter
from starlette.websockets import WebSocket, WebSocketState

from stretto_gateway.fields import IGNORED
from stretto_gateway.gateway import Gateway
from stretto_gateway.realtime.channel import Channel
from stretto_gateway.realtime.endpoints import run
from stretto_gateway.realtime.settings import FINISH_REASON, TURN_END, RealtimeSettings, joined
from stretto_gateway.voice_store import EVERYBODY
from tests.client.fake_server import PROFILE, Chunk, Request, Step
from tests.gateway.conftest import Running
from tests.gateway.line import Line
from tests.gateway.test_chat import task
from tests.patience import PATIENCE_S

RATE = 24_000
PIECE = RATE // 50  # samples of 20 ms, as microphones send them
EVENT: TypeAdapter[Any] = TypeAdapter(RealtimeServerEvent)
SESSIONS = {"realtime": RealtimeSessionCreateResponse, "transcription": RealtimeTranscriptionSessionCreateResponse}
SAMPLES = Path(__file__).parents[2] / "data/speech"
TALKS = PROFILE | {
    "family": "talker",
    "tasks": [
        *PROFILE["tasks"],
        *(task(name, needs=[], also=["text", "audio"], speaks=name == "dialogue") for name in ("dialogue", "chat")),
    ],
}


def unknown_fields(value: Any) -> list[str]:
    """Return the field names in a parsed event that OpenAI's types do not have."""
    if isinstance(value, BaseModel):
        fields = [value.__dict__[name] for name in type(value).model_fields]
        return [*(value.model_extra or {}), *(name for each in fields for name in unknown_fields(each))]
    return [name for each in value for name in unknown_fields(each)] if isinstance(value, list) else []


def check(text: str | bytes) -> Any:
    """Parse the event in a message with OpenAI's types; check that no field is missing or unknown."""
    event = EVENT.validate_json(text)
    unknown = set(unknown_fields(event)) - {FINISH_REASON, IGNORED, TURN_END}
    if event.type in ("session.created", "session.updated"):
        session = json.loads(text)["session"]
        described = SESSIONS[session["type"]].model_validate(session)  # the one type that has an id
        assert not set(unknown_fields(described)) & unknown, text
        return event
    assert not unknown, text
    return event


class Caller:
    """A session as its client sees it."""

    def __init__(self, connection: AsyncRealtimeConnection):
        self.connection = connection
        self.seen: list[Any] = []

    async def next(self) -> Any:
        """Return the next event."""
        async with asyncio.timeout(PATIENCE_S):
            self.seen.append(check(await self.connection.recv_bytes()))
        return self.seen[-1]

    async def until(self, kind: str) -> list[Any]:
        """Return the events up to the next of this type; fail on an error event before it."""
        events = [await self.next()]
        while events[-1].type != kind:
            assert events[-1].type != "error", events[-1]
            events.append(await self.next())
        return events

    async def send(self, kind: str, **fields: Any) -> None:
        """Send an event, which may be unknown to OpenAI's types."""
        await self.connection.send({"type": kind, **fields})  # type: ignore[arg-type]

    async def ask(self, kind: str, **fields: Any) -> Any:
        """Send an event and return the next one."""
        await self.send(kind, **fields)
        return await self.next()

    async def update(self, turn_detection: Any = None, **session: Any) -> Any:
        """Update the session; turn detection is off unless it is given."""
        kind = session.pop("type", "realtime")
        heard = {"input": {"turn_detection": turn_detection} | session.pop("input", {})}
        return await self.ask("session.update", session=joined({"type": kind, "audio": heard}, session))

    async def say(self, text: str, **item: Any) -> Any:
        """Add a written user turn."""
        content = [{"type": "input_text", "text": text}]
        return await self.put({"type": "message", "role": "user", "content": content} | item)

    async def put(self, item: dict[str, Any]) -> Any:
        """Add an item and return the event that confirms it."""
        added = await self.ask("conversation.item.create", item=item)
        assert (await self.next()).type == "conversation.item.done"
        return added

    async def hear(self, pcm: np.ndarray) -> None:
        """Send samples, int16 [n], in pieces as a microphone does."""
        for start in range(0, len(pcm), PIECE):
            data = base64.b64encode(pcm[start : start + PIECE].tobytes()).decode()
            await self.send("input_audio_buffer.append", audio=data)


def call(running: Running, model: str = "gpt-realtime", **options: Any) -> AbstractAsyncContextManager[Caller]:
    """Open a session and return its caller once it has been created."""
    return call_by(running.openai(), model, **options)


@asynccontextmanager
async def call_by(client: openai.AsyncOpenAI, model: str, **options: Any) -> AsyncIterator[Caller]:
    """Open a session with an existing client."""
    options["websocket_connection_options"] = {"open_timeout": 60, "max_queue": None}
    async with client.realtime.connect(model=model, **options) as connection:
        caller = Caller(connection)
        assert (await caller.next()).type == "session.created"
        yield caller


def spoken(name: str = "birch_canoe_slt") -> np.ndarray:
    """Return a sentence, int16 [n] at 24 kHz, without leading silence."""
    pcm, rate = soundfile.read(SAMPLES / f"{name}.ogg", dtype="float32")
    pcm = soxr.resample(pcm, rate, RATE)
    first = int(np.argmax(np.abs(pcm) > 0.02))
    return (pcm[first:] * 32767).astype(np.int16)


def silence(seconds: float) -> np.ndarray:
    """Return this duration of quiet noise."""
    noise = np.random.default_rng(0).standard_normal(round(seconds * RATE))
    return (noise * 10).astype(np.int16)


def codes(num_frames: int, first: int = 0) -> list[list[int]]:
    """Return codes for two streams with this number of frames."""
    return [[first + n for n in range(num_frames)], [100 + first + n for n in range(num_frames)]]


def answer(*before_last: Step) -> list[Step]:
    """Return the steps of a reply with words and 0.4 s of audio; `before_last` come before its second half."""
    half = RATE // 5
    return [
        Chunk(0, None, text="so it"),
        Chunk(1, half, is_16_bit=True, words=("so",), codes=codes(10)),
        *before_last,
        Chunk(5, half, is_16_bit=True, words=("it",), codes=codes(10, 10), is_final=True, is_last=True),
    ]


def by_task(**scripts: list[Step]) -> Callable[[Request], list[Step]]:
    """Return the script of a server that answers according to the task."""
    return lambda request: scripts[request["task"].decode()]


async def run_over(gateway: Gateway, line: Line) -> None:
    """Run a session from beginning to end, without a network."""
    scope = {"type": "websocket", "path": "/", "headers": [], "query_string": b""}
    socket = WebSocket(scope, line.receive, line.send)
    socket.client_state = socket.application_state = WebSocketState.CONNECTED
    channel = Channel(socket, gateway.limits.stall_s)
    await run(gateway, socket, channel, RealtimeSettings(model="talker"), "talker", EVERYBODY)
