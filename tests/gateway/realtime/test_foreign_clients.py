"""Third-party clients of the realtime API with default settings, against a gateway in front of a scripted server.

The bundled model does not converse, so tests/clients/test_real_clients.py cannot test them.
"""

import asyncio
import json
import wave
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stretto_gateway.realtime.end_of_turn import read_model
from tests.client.fake_server import PROFILE, FakeServer
from tests.clients.environments import Client
from tests.clients.test_real_clients import CLIENTS
from tests.gateway.conftest import Running, Start
from tests.gateway.realtime.caller import RATE, TALKS, answer, by_task, silence, spoken
from tests.gateway.realtime.test_session import WRITTEN

pytestmark = pytest.mark.nightly

SCRIPTS = {
    "openai-agents": ("openai_agents_realtime.py", "written turn", {"instructions": "Be brief.", "voice": "ash"}),
    "LiveKit Agents": ("livekit_realtime.py", "greeting", {"instructions": "You are kind.", "voice": "marin"}),
    "Pipecat": ("pipecat_realtime.py", "greeting", None),
}


@pytest.fixture
async def talker() -> AsyncIterator[FakeServer]:
    """Server whose model converses, and does not transcribe."""
    tasks = [task for task in TALKS["tasks"] if task["name"] != "asr"]
    server = FakeServer(by_task(dialogue=answer()), profile=TALKS | {"tasks": tasks})
    yield server
    await server.stop()


@pytest.fixture
async def listener() -> AsyncIterator[FakeServer]:
    """Server whose model only transcribes."""
    tasks = [task for task in PROFILE["tasks"] if task["name"] == "asr"]
    server = FakeServer(lambda _: WRITTEN, profile=PROFILE | {"tasks": tasks})
    yield server
    await server.stop()


@pytest.mark.parametrize("name", SCRIPTS)
async def test_third_party_client_uses_two_servers_and_an_end_of_turn_model(
    start: Start, talker: FakeServer, listener: FakeServer, tmp_path: Path, name: str
) -> None:
    folder = await asyncio.to_thread(CLIENTS["Pipecat"].environment.make)
    (path,) = folder.rglob("smart-turn-v3.2-cpu.onnx")
    servers = {"listener": await listener.start(), "talker": await talker.start()}
    running = await start(named_servers=servers, turn_model=read_model(path))
    await converse(running, talker, name, tmp_path)
    assert {each["task"] for each in talker.requests} == {b"dialogue"}
    if name == "openai-agents":  # whose default is semantic_vad
        assert await running.metric("gateway_turn_decision_seconds_count") > 0


@pytest.mark.parametrize("name", SCRIPTS)
async def test_third_party_client_converses_with_its_default_settings(start: Start, tmp_path: Path, name: str) -> None:
    running = await start(by_task(dialogue=answer(), asr=WRITTEN), TALKS)
    await converse(running, running.behind, name, tmp_path)


async def converse(running: Running, talker: FakeServer, name: str, tmp_path: Path) -> None:
    """Run a client's script, and check its report and the requests that `talker` has received."""
    script, first, settings = SCRIPTS[name]
    recording = tmp_path / "recording.wav"
    with wave.open(str(recording), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(np.concatenate([silence(0.5), spoken()]).tobytes())
    client = Client(CLIENTS[name].environment, script, ())
    command = await asyncio.to_thread(client.command, running.url, recording, tmp_path)
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)
    printed, log = await asyncio.wait_for(process.communicate(), 600)
    lines = [json.loads(line) for line in printed.decode().splitlines() if line.startswith("{")]
    results: dict[str, Any] = {line.pop("step"): line for line in lines}
    assert process.returncode == 0, log.decode()
    assert "session" not in results, (results, log.decode())
    for step in (first, "spoken turn"):
        assert results[step]["num_samples"] == 2 * RATE // 5
    assert results.get("settings") == settings
    asked = [json.loads(each["messages"])[-1] for each in talker.requests if each["task"] == b"dialogue"]
    assert [turn["role"] for turn in asked] == ["user", "user"]
    assert ("text" in asked[0], "audio" in asked[1]) == (True, True)
