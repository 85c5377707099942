"""Kyutai's own clients against the gateway and a real server: Moshi's, Unmute's, and the scripts of delayed streams.

They run unchanged, each in its own environment. The models have small random weights, except for speech, which is the
bundled model's.
"""

import asyncio
import json
import os
import re
import subprocess
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plugins.kyutai.tests import kyutai_release, moshi_release
from stretto_client import SpeechClient
from tests.clients.environments import CACHE, UNREACHABLE, Client, Environment
from tests.server.conftest import ServedCheckpoint, Server, served_checkpoint
from tests.server.openai_client import gateway_port

pytestmark = [pytest.mark.server, pytest.mark.nightly]
FOLDER = Path(__file__).parents[1] / "clients"
RATE = 24_000
PCM = (np.sin(np.arange(60_000) ** 1.3 / 300) * 16_000).astype(np.int16)
MOSHI = Environment(
    ("moshi==0.2.13", "sphn==0.2.1", "aiohttp<3.12", "numpy<2.3"),
    without=("torch", "bitsandbytes", "huggingface_hub", "safetensors", "sentencepiece", "sounddevice", "einops"),
)
SERVICES = Environment(
    (
        "msgpack",
        "websockets",
        "pydantic",
        "numpy",
        "prometheus-client",
        "aiofiles",
        "redis",
        "requests",
        "sphn",
        "tqdm",
    ),
    "3.12",
)
SOURCES = {"unmute": "84aa28d3b4c58efafb2e22f3217001330608b980", "delayed-streams-modeling": "f6074cb"}


def source(name: str) -> Path:
    """Return the folder of Kyutai's repository `name`; skip the test if it cannot be reached."""
    folder = CACHE / f"{name}-{SOURCES[name][:7]}"
    if not (folder / "README.md").exists():
        clone = ["git", "clone", "--quiet", f"https://github.com/kyutai-labs/{name}", str(folder)]
        done = subprocess.run(clone, capture_output=True, text=True, check=False)
        if done.returncode and any(words in done.stderr for words in UNREACHABLE):
            pytest.skip(f"its source cannot be reached: {done.stderr.strip()}")
        assert not done.returncode, done.stderr
        subprocess.run(["git", "-C", str(folder), "checkout", "--quiet", SOURCES[name]], check=True)
    return folder


async def run(command: list[str], **variables: str) -> list[dict[str, Any]]:
    """Return the lines of JSON that a client prints."""
    pipe, known = asyncio.subprocess.PIPE, os.environ | variables
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe, env=known)
    printed, log = await asyncio.wait_for(process.communicate(), 600)
    assert process.returncode == 0, (printed + log).decode()
    return [json.loads(line) for line in printed.decode().splitlines() if line.startswith("{")]


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    with wave.open(str(tmp_path / "recording.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(PCM.tobytes())
    return tmp_path / "recording.wav"


@pytest.fixture(scope="module")
def listener(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedCheckpoint]:
    folder = tmp_path_factory.mktemp("stt")
    checkpoint = kyutai_release.make_checkpoint(folder)
    with served_checkpoint(folder, checkpoint) as server:
        yield ServedCheckpoint(server, checkpoint)


async def test_moshi_client_completes_a_conversation(tmp_path_factory: pytest.TempPathFactory, recording: Path) -> None:
    """It sends Opus from a simulated microphone, and plays a frame for each."""
    command = Client(MOSHI, FOLDER / "kyutai_moshi.py", ()).command
    await asyncio.to_thread(MOSHI.make)
    folder = tmp_path_factory.mktemp("moshi")
    checkpoint = moshi_release.make_checkpoint(folder)
    with served_checkpoint(folder, checkpoint) as server:
        async with gateway_port(server.grpc) as port:
            talks = [command(f"ws://127.0.0.1:{port}", recording, folder) for _ in range(2)]
            results = [lines[0] for lines in await asyncio.gather(*map(run, talks))]
    for result in results:
        assert result["num_samples"] >= len(PCM) - 5 * 1920
        assert result["peak"] > 0.01
        assert len(result["text"]) > 3
        levels = {level for level, _ in result["log"]} - {"info"}
        assert levels <= {"warning"}, result["log"]
        assert [text for level, text in result["log"] if level == "warning"] == ["unknown message kind 0"]


async def words_of(listener: ServedCheckpoint, pcm: np.ndarray) -> list[list[Any]]:
    """Return the words of a recording with their start times."""
    async with SpeechClient(f"localhost:{listener.server.grpc}") as client:
        events = [event async for event in client.transcribe(((pcm / 32768).astype(np.float32), RATE))]
    return [[word.word, word.start_s] for event in events for word in event.words]


async def test_unmute_stt_client_receives_words_and_pauses(
    listener: ServedCheckpoint, server: Server, recording: Path, tmp_path: Path
) -> None:
    unmute = await asyncio.to_thread(source, "unmute")
    (tmp_path / "task").write_text("asr")
    async with gateway_port(server.grpc, stt=listener.server.grpc) as port:
        command = Client(SERVICES, FOLDER / "kyutai_unmute.py", ()).command
        line = await asyncio.to_thread(command, f"ws://127.0.0.1:{port}", recording, tmp_path)
        (result,) = await run(line, PYTHONPATH=str(unmute))
    expected = await words_of(listener, np.concatenate([PCM, np.zeros(2 * RATE, np.int16)]))
    assert len(result["words"]) > 3
    assert result["words"] == expected[: len(result["words"])]
    until_s = len(PCM) / RATE + 0.5
    assert len(result["words"]) >= sum(start_s < until_s for _, start_s in expected) - 1
    assert 0 <= min(result["pauses"]) <= max(result["pauses"]) < 1, "the moving average begins at 1"


async def test_delayed_streams_stt_script_prints_timed_words(
    listener: ServedCheckpoint, recording: Path, tmp_path: Path
) -> None:
    scripts = await asyncio.to_thread(source, "delayed-streams-modeling")
    made = await asyncio.to_thread(SERVICES.make)
    script = str(scripts / "scripts" / "stt_from_file_rust_server.py")
    python = str(made / "env" / "bin" / "python")
    async with gateway_port(listener.server.grpc) as port:
        command = [python, script, str(recording), "--url", f"ws://127.0.0.1:{port}", "--rtf", "1000"]
        done = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        printed, _ = await asyncio.wait_for(done.communicate(), 300)
    assert done.returncode == 0
    silence = np.zeros(RATE, np.int16)
    expected = await words_of(listener, np.concatenate([silence, PCM, *[silence] * 5]))
    found = re.findall(r"^ *([0-9.]+) - *([0-9.]+)  (.+)$", printed.decode(), re.MULTILINE)
    assert len(found) > 3
    assert [word for _, _, word in found] == [word for word, _ in expected][: len(found)]
    for (start_s, _, _), (_, expected_s) in zip(found, expected, strict=False):
        assert float(start_s) == pytest.approx(expected_s, abs=0.006)


async def test_unmute_tts_client_receives_speech_and_word_times(
    listener: ServedCheckpoint, server: Server, recording: Path, tmp_path: Path
) -> None:
    unmute = await asyncio.to_thread(source, "unmute")
    (tmp_path / "task").write_text("tts")
    async with gateway_port(listener.server.grpc, tts=server.grpc) as port:
        command = Client(SERVICES, FOLDER / "kyutai_unmute.py", ()).command
        line = await asyncio.to_thread(command, f"ws://127.0.0.1:{port}", recording, tmp_path)
        (result,) = await run(line, PYTHONPATH=str(unmute))
    spoken = [word for word, *_ in result["words"]]
    assert "garden" in spoken
    times = [start_s for _, start_s, _ in result["words"]]
    assert times == sorted(times)
    assert all(start_s <= stop_s <= result["num_samples"] / RATE + 0.05 for _, start_s, stop_s in result["words"])
    async with SpeechClient(f"localhost:{server.grpc}") as client:
        text = "".join([event.text async for event in client.transcribe(str(tmp_path / "unmute.wav"))])
    assert "garden" in text


async def test_delayed_streams_tts_script_synthesizes_speech(server: Server, tmp_path: Path) -> None:
    scripts = await asyncio.to_thread(source, "delayed-streams-modeling")
    made = await asyncio.to_thread(SERVICES.make)
    (tmp_path / "sounddevice.py").write_text("")  # which it imports, and does not use
    (tmp_path / "text").write_text("It is twenty past nine\nand the garden door is open.\n")
    script, out = str(scripts / "scripts" / "tts_rust_server.py"), tmp_path / "out.wav"
    async with gateway_port(server.grpc) as port:
        python, url = str(made / "env" / "bin" / "python"), f"ws://127.0.0.1:{port}"
        await run([python, script, str(tmp_path / "text"), str(out), "--url", url], PYTHONPATH=str(tmp_path))
    async with SpeechClient(f"localhost:{server.grpc}") as client:
        text = "".join([event.text async for event in client.transcribe(str(out))])
    assert "garden" in text
