"""WebSocket sessions of the gateway with a few events changed, missing or repeated."""

import asyncio
import base64
import json
from random import Random
from typing import Any

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from tests.server.fuzzing.doors import ANSWER_S, Doors, Sent, wrong_words
from tests.server.fuzzing.mutations import BYTES, as_json, varied

Event = dict[str, Any]
CONFIG: Event = {"type": "session.config", "voice": "alloy", "response_format": "pcm", "seed": 1, "max_audio_s": 0.24}
WRITTEN: tuple[Event, ...] = (
    CONFIG,
    {"type": "input.text", "text": "a cat "},
    {"type": "input.text", "text": "sat."},
    {"type": "input.done"},
    {"type": "session.close"},
)
CLOSE = json.dumps(WRITTEN[-1])  # after it, the client waits for its text to be spoken
TURNS = {"type": "server_vad", "threshold": 0.5, "prefix_padding_ms": 300, "silence_duration_ms": 200}
SILENCE = base64.b64encode(bytes(9600)).decode()
MESSAGE = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hello"}]}
HEARD: tuple[Event, ...] = (
    {"type": "session.update", "session": {"type": "transcription", "audio": {"input": {"turn_detection": TURNS}}}},
    {"type": "session.update", "session": {"type": "transcription", "audio": {"input": {"turn_detection": None}}}},
    {"type": "input_audio_buffer.append", "audio": SILENCE},
    {"type": "input_audio_buffer.commit"},
    {"type": "conversation.item.create", "item": MESSAGE, "previous_item_id": "root"},
    {"type": "conversation.item.truncate", "item_id": "item_1", "content_index": 0, "audio_end_ms": 20},
    {"type": "conversation.item.delete", "item_id": "item_1"},
    {"type": "response.create", "response": {"output_modalities": ["text"], "options": {"seed": 1}}},
    {"type": "response.cancel"},
    {"type": "input_audio_buffer.clear"},
)
ROUTES = {
    "/v1/audio/speech/stream": WRITTEN,
    "/v1/realtime?intent=transcription": HEARD,
    "/v1/realtime?model=whisper-1": HEARD,
}
FAILED_CODES = (1006, 1011)  # RFC 6455, section 7.4.1: it has broken off; the server has failed


def make_session(draw: Random) -> Sent:
    """Return a session with mutations; its last message ends it."""
    path = draw.choice(list(ROUTES))
    events: list[Event] = list(ROUTES[path])
    for _ in range(draw.randint(0, 3)):
        place = draw.randrange(len(events) + 1)
        match draw.randrange(4):
            case 0:
                del events[place : place + 1]
            case 1:
                events.insert(place, draw.choice(ROUTES[path]))
            case _ if events:
                events[place % len(events)] = varied(events[place % len(events)], draw)
    messages: list[str | bytes] = []
    for event in events:
        data = as_json(event, draw)
        messages.append(data if draw.random() < 0.03 else data.decode(errors="replace"))
    if draw.random() < 0.15:
        messages.insert(draw.randrange(len(messages) + 1), draw.choice(BYTES))
    is_left = draw.random() < 0.2  # without a word
    return Sent(f"WebSocket {path}", lambda doors: _ask(doors, path, messages, is_left))


async def _ask(doors: Doors, path: str, messages: list[str | bytes], is_left: bool) -> list[str]:
    wrong: list[str] = []
    try:
        async with asyncio.timeout(ANSWER_S), connect(f"ws://127.0.0.1:{doors.gateway_port}{path}") as socket:
            listening = asyncio.create_task(_listen(doors, socket, wrong))
            try:
                for message in messages:
                    await socket.send(message)
                if is_left:
                    socket.transport.abort()
                elif not messages or messages[-1] != CLOSE:
                    await socket.close()
            except ConnectionClosed:
                pass
            code = await listening
    except TimeoutError:
        return [*wrong, f"no end within {ANSWER_S:g} s"]
    except InvalidStatus as error:
        return [f"status {error.response.status_code}"] if error.response.status_code >= 500 else []
    except WebSocketException as error:
        return [*wrong, f"{type(error).__name__}: {error}"]
    return wrong + ([f"closed with {code}"] if code in FAILED_CODES and not is_left else [])


async def _listen(doors: Doors, socket: Any, wrong: list[str]) -> int | None:
    """Record the problems of all events until the connection ends, and return its close code."""
    try:
        async for message in socket:
            event = {"type": "sound"} if isinstance(message, bytes) else json.loads(message)
            doors.answers["WebSocket refused" if event["type"] == "error" else "WebSocket answered"] += 1
            if event["type"] == "error":
                wrong += wrong_words(event["error"]["message"])
    except ConnectionClosed:
        pass
    return socket.close_code
