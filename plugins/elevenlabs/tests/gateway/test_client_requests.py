"""Requests of ElevenLabs' clients, as plugins/elevenlabs/tests/server records them."""

import json
from pathlib import Path
from typing import Any

import pytest
import websockets

from plugins.elevenlabs.tests.gateway.test_elevenlabs import speaks
from plugins.elevenlabs.tests.gateway.test_stream_input import Writer, sound
from plugins.elevenlabs.tests.server.test_elevenlabs_clients import CLIENTS, KEPT
from tests.client.fake_server import PROFILE
from tests.gateway.conftest import Running, Start
from tests.gateway.test_frameworks import replay

RECORDED = json.loads(Path(KEPT).read_text())
REQUESTS = [
    pytest.param(request, id=f"{client}: {request['target']} {index}")
    for client, requests in RECORDED.items()
    for index, request in enumerate(requests)
]
HEADERS = ("xi-api-key", "authorization")


async def replay_messages(running: Running, request: dict[str, Any]) -> None:
    """Send a recorded WebSocket's messages; check that there is audio, unless an unknown voice was recorded."""
    headers = {name: value for name, value in request["headers"].items() if name in HEADERS}
    url = f"ws{running.url.removeprefix('http')}{request['target']}"
    async with websockets.connect(url, additional_headers=headers) as socket:
        writer = Writer(socket)
        await writer.send(*request["messages"], {"text": ""})
        if "/nobody/" in request["target"]:
            error, _ = await writer.closed()
            assert error["error"] == "voice_not_found"
        else:
            context_id = request["messages"][0].get("context_id")
            assert sound(await writer.until_final(context_id))


@pytest.mark.parametrize("request_", REQUESTS)
async def test_gateway_answers_requests_of_elevenlabs_clients(start: Start, request_: dict[str, Any]) -> None:
    running = await start(speaks, PROFILE | {"voices": ["heart"]})  # the bundled model's, which some clients ask for
    if "messages" in request_:
        await replay_messages(running, request_)
    else:
        assert await replay(running, request_) == (request_["status"], request_["answer"])


def test_recorded_requests_cover_every_client() -> None:
    assert set(RECORDED) == set(CLIENTS)
