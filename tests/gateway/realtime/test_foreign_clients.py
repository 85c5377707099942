"""Third-party clients of the realtime API with default settings, against a gateway in front of a scripted server.

The bundled model does not converse, so tests/clients/test_real_clients.py cannot test them.
"""

import asyncio
import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.clients.environments import Client
from tests.clients.test_real_clients import CLIENTS
from tests.gateway.conftest import Start
from tests.gateway.realtime.caller import RATE, TALKS, answer, by_task, silence, spoken
from tests.gateway.realtime.test_session import WRITTEN

pytestmark = pytest.mark.nightly

SCRIPTS = {
    "openai-agents": ("openai_agents_realtime.py", "written turn", {"instructions": "Be brief.", "voice": "ash"}),
    "LiveKit Agents": ("livekit_realtime.py", "greeting", {"instructions": "You are kind.", "voice": "marin"}),
    "Pipecat": ("pipecat_realtime.py", "greeting", None),
}


@pytest.mark.parametrize("name", SCRIPTS)
async def test_third_party_client_converses_with_its_default_settings(start: Start, tmp_path: Path, name: str) -> None:
    script, first, settings = SCRIPTS[name]
    running = await start(by_task(dialogue=answer(), asr=WRITTEN), TALKS)
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
    asked = [json.loads(each["messages"])[-1] for each in running.behind.requests if each["task"] == b"dialogue"]
    assert [turn["role"] for turn in asked] == ["user", "user"]
    assert ("text" in asked[0], "audio" in asked[1]) == (True, True)
