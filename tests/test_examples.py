"""Each program in examples/ runs: with a scripted server or, without a server, on the bundled model."""

import asyncio
import json
import os
import runpy
import sys
import wave
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from stretto_gateway.encoding import wav_header
from tests.client.fake_server import PROFILE, Chunk, FakeServer, Request, Step, Taken, Until
from tests.engine.forking import forked_processes
from tests.gateway.conftest import NUM_SAMPLES, SPOKEN, Start, start

__all__ = ["start"]  # a fixture
EXAMPLES = Path(__file__).parents[1] / "examples"
TTS, ASR = PROFILE["tasks"]  # type: ignore[misc]
CLONES = PROFILE | {"tasks": [TTS | {"system": ["audio", "text"]}, ASR]}
WORDS = "It is twenty past nine."


async def run(name: str, *words: str, cwd: Path, **environment: str) -> str:
    """Run an example, check that it ends with status 0, and return its output."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(EXAMPLES / name), *words),
        cwd=cwd,
        env=os.environ | environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    printed, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return printed.decode()


def length_of(file: Path) -> int:
    """Return the number of samples of a wav file."""
    with wave.open(str(file)) as audio:
        return audio.getnframes()


def script(request: Request) -> list[Step]:
    """Return the steps of a transcript or of speech."""
    is_heard = request["task"] == b"asr"
    return [Chunk(0, None, text=WORDS, is_final=True, is_last=True)] if is_heard else SPOKEN


@pytest.fixture
async def server() -> AsyncIterator[tuple[FakeServer, str]]:
    """Start a fake server whose model clones voices, and yield it with its address."""
    server = FakeServer(script, profile=CLONES)
    yield server, await server.start()
    await server.stop()


async def test_speak_example_runs(server: tuple[FakeServer, str], tmp_path: Path) -> None:
    printed = await run("speak.py", "a cat", "--server", server[1], cwd=tmp_path)
    assert "cat" in printed
    assert "seed 7" in printed
    assert length_of(tmp_path / "speech.wav") == NUM_SAMPLES


async def test_stream_llm_example_runs(server: tuple[FakeServer, str], tmp_path: Path) -> None:
    """A fake language model answers with two sentences in pieces."""
    pieces = ["One sen", "tence. ", "Anot", "her one."]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        deltas = [{"choices": [{"index": 0, "delta": {"content": piece}}]} for piece in pieces]
        body = "".join(f"data: {json.dumps(delta)}\n\n" for delta in [*deltas, {"choices": []}]) + "data: [DONE]\n\n"
        head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
        writer.write((head + body).encode())
        await writer.drain()
        writer.close()

    llm = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{llm.sockets[0].getsockname()[1]}/v1"
    async with llm:
        words = ("A question?", "--model", "any", "--server", server[1])
        printed = await run("stream_llm.py", *words, cwd=tmp_path, OPENAI_BASE_URL=url, OPENAI_API_KEY="unused")
    assert "".join(pieces) in printed
    assert [request["text"] for request in server[0].requests] == [b"One sentence.", b"Another one."]
    assert length_of(tmp_path / "answer.wav") > NUM_SAMPLES


async def test_transcribe_live_example_runs(tmp_path: Path) -> None:
    """The file is 0.2 s long, and its samples arrive in at most three parts."""
    complete, heard = asyncio.Event(), list[float]()

    def listen(request: Request) -> list[Step]:
        if "session" not in request:
            return [Chunk(0, None, session="s1"), Until(complete), Chunk(1, None, "a cat", is_final=True, is_last=True)]
        record = json.loads(request["session"])
        heard.extend(np.atleast_1d(request.get("pcm_in", np.zeros(0))).tolist())
        if record["is_last"]:
            complete.set()
        return [Taken(record["part"])]

    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(np.full(3200, 8192, np.int16).tobytes())
    behind = FakeServer(listen)
    try:
        assert await run("transcribe_live.py", "a.wav", "--server", await behind.start(), cwd=tmp_path) == "a cat\n"
    finally:
        await behind.stop()
    assert heard == [0.25] * 3200


async def test_clone_voice(server: tuple[FakeServer, str], tmp_path: Path) -> None:
    recording = tmp_path / "me.wav"
    recording.write_bytes(wav_header(16_000, 3200) + bytes(3200))
    words = (str(recording), "Good morning.", "--words", "It is me.", "--server", server[1])
    await run("clone_voice.py", *words, cwd=tmp_path)
    (request,) = server[0].requests
    assert request["audio"] == recording.read_bytes()
    assert json.loads(request["messages"])[0] == {"role": "system", "audio": "audio", "text": "It is me."}
    assert length_of(tmp_path / "cloned.wav") == NUM_SAMPLES


async def test_openai_client_example_runs(start: Start, tmp_path: Path) -> None:
    running = await start(script)
    printed = await run("openai_client.py", "--url", f"{running.url}/v1", cwd=tmp_path)
    assert printed == f"speech.wav: {WORDS}\n"
    options = json.loads(running.behind.requests[0]["options"])
    assert (options["seed"], options["guidance_scale"]) == (7, 2.0)


@pytest.mark.engine
@pytest.mark.nightly  # by day tests/engine/test_llm.py
def test_python_engine_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The example runs in this process, which has imported vLLM."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["python_engine.py", "Good morning."])
    with forked_processes():
        runpy.run_path(str(EXAMPLES / "python_engine.py"), run_name="__main__")
    printed = capsys.readouterr().out
    frames, guided = (int(word) for word in printed.splitlines()[-1].split() if word.isdigit())
    assert 10 < frames == guided
    assert length_of(tmp_path / "speech.wav") == frames * 900


def test_every_example_is_short_and_has_a_test() -> None:
    tested = Path(__file__).read_text()
    for path in EXAMPLES.glob("*.py"):
        assert f'"{path.name}"' in tested
        assert len(path.read_text().splitlines()) <= 60
