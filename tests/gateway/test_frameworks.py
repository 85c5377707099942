"""docs/frameworks.md: requests of real clients with default settings, as recorded by tests/clients."""

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import av
import numpy as np
import openai
import pytest
import websockets

from stretto_gateway.config import Limits
from tests.client.fake_server import PROFILE, Chunk, ErrorText, Request, Step
from tests.clients.test_real_clients import CLIENTS
from tests.gateway.conftest import SPOKEN, Running, Start
from tests.patience import PATIENCE_S

TEXT = "It is twenty past nine."
pytestmark = pytest.mark.slow
RECORDED = json.loads((Path(__file__).parents[1] / "data" / "client_requests.json").read_text())
REQUESTS = [
    pytest.param(request, id=f"{client}: {request['target']} {index}")
    for client, requests in RECORDED.items()
    for index, request in enumerate(requests)
]
CODECS = {"wav": "pcm_s16le", "mp3": "libmp3lame", "webm": "libopus", "ogg": "libopus"}
RATE = 48_000


def script(request: Request) -> list[Step]:
    return [Chunk(0, None, text=TEXT, is_final=True, is_last=True)] if "audio" in request else list(SPOKEN)


@cache
def recording(container: str) -> bytes:
    """Return a tone of a quarter of a second, in a container format that clients send."""
    file = io.BytesIO()
    samples = (8000 * np.sin(np.arange(RATE // 4) / 20)).astype(np.int16)
    with av.open(file, "w", format=container) as output:
        stream: Any = output.add_stream(CODECS[container], rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="s16", layout="mono")
        frame.sample_rate = RATE
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def recording_url() -> str:
    return "data:audio/wav;base64," + base64.b64encode(recording("wav")).decode()


def form(parts: list[dict[str, str]]) -> tuple[bytes, str]:
    """Return a form with these parts in this order, and its content type."""
    body = bytearray()
    for part in parts:
        said = f'form-data; name="{part["name"]}"'
        data = part.get("value", "").encode()
        if "file" in part:
            said += f'; filename="{part["filename"]}"'
            data = recording(part["file"])
        kind = f"Content-Type: {part['type']}\r\n" if part.get("type") else ""
        body += f"--edge\r\nContent-Disposition: {said}\r\n{kind}\r\n".encode() + data + b"\r\n"
    return bytes(body + b"--edge--\r\n"), "multipart/form-data; boundary=edge"


async def chunks(content: bytes) -> AsyncIterator[bytes]:
    """Yield the content in two parts, for an upload without a length."""
    yield content[:1000]
    yield content[1000:]


async def replay(running: Running, request: dict[str, Any]) -> tuple[int, str]:
    """Send a recorded request; return the status and content type of the response."""
    headers = dict(request["headers"])
    content = b""
    if "parts" in request:
        content, headers["content-type"] = form(request["parts"])
    elif "json" in request:
        brought = {"ref_audio": recording_url()} if "ref_audio" in request["json"] else {}
        content = json.dumps(request["json"] | brought).encode()
    is_chunked = headers.pop("transfer-encoding", "") == "chunked"
    body = chunks(content) if is_chunked else content
    async with running.http() as http:
        answer = await http.request(request["method"], request["target"], headers=headers, content=body)
    return answer.status_code, answer.headers.get("content-type", "").split(";")[0]


async def replay_messages(running: Running, request: dict[str, Any]) -> None:
    """Send a recorded WebSocket's messages; check that no error precedes the answer to our final message."""
    parts = urlsplit(running.url)
    headers = {name: value for name, value in request["headers"].items() if name == "authorization"}
    url = f"ws://{parts.netloc}{request['target']}"
    # The tests' gateway has a voice and no conversation: a silent second is audio enough for every message.
    audio = base64.b64encode(bytes(48_000)).decode()
    async with websockets.connect(url, additional_headers=headers) as socket:
        for message in [*request["messages"], {"type": "input_audio_buffer.clear"}]:
            await socket.send(json.dumps(message | ({"audio": audio} if "audio" in message else {})))
        wanted = sum(message["type"] == "input_audio_buffer.clear" for message in request["messages"]) + 1
        async with asyncio.timeout(PATIENCE_S):
            while wanted:
                event = json.loads(await socket.recv())
                # Clients expect this error if the server has committed already; here it received only silence.
                assert event.get("error", {}).get("code") in (None, "input_audio_buffer_commit_empty"), event
                wanted -= event["type"] == "input_audio_buffer.cleared"


@pytest.mark.parametrize("request_", REQUESTS)
async def test_gateway_answers_default_requests_of_common_frameworks(start: Start, request_: dict[str, Any]) -> None:
    running = await start(script, PROFILE | {"voices": ["heart"]})  # the bundled model's, which some clients ask for
    if "messages" in request_:
        await replay_messages(running, request_)
    else:
        assert await replay(running, request_) == (request_["status"], request_["answer"])


def test_recorded_requests_cover_every_client() -> None:
    assert set(RECORDED) == set(CLIENTS)


async def test_open_webui_empty_model_name_uses_the_default(start: Start) -> None:
    async with (await start(script)).http() as http:
        files = {"file": ("upload.wav", recording("wav"))}
        answer = await http.post("/v1/audio/transcriptions", files=files, data={"model": ""})
    assert (answer.status_code, answer.json()["text"]) == (200, TEXT)


async def test_livekit_receives_the_status_and_message_of_a_failure(start: Start) -> None:
    full = [ErrorText("full: 9 utterances are already in flight")]
    client = (await start(full, limits=Limits(full_s=0.0, drain_s=1))).openai()
    with pytest.raises(openai.APIStatusError) as raised:
        async with client.audio.speech.with_streaming_response.create(
            input=TEXT, model="gpt-4o-mini-tts", voice="ash", response_format="mp3", speed=1.0
        ):
            pass
    assert raised.value.status_code == 429
    assert raised.value.request_id
    assert "at capacity" in raised.value.message
