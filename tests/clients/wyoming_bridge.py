"""wyoming-openai, which connects Home Assistant: its server uses the gateway and gets Home Assistant's requests."""

import asyncio
import os
import socket
import sys
from contextlib import asynccontextmanager
from pathlib import Path

from report import FOLDER, TEXT, URL, attempt, recorded_pcm, report, report_audio
from wyoming.asr import Transcribe, Transcript
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient
from wyoming.info import Describe, Info
from wyoming.tts import Synthesize, SynthesizeVoice

BACKENDS = {"by default": [], "KOKORO_FASTAPI": ["KOKORO_FASTAPI"], "SPEACHES": ["SPEACHES"]}


@asynccontextmanager
async def bridge(backend: list[str]):
    """Start the server as in its README and yield a connected client."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = ["--uri", f"tcp://127.0.0.1:{port}", "--languages", "en", "--stt-openai-url", f"{URL}/v1"]
    words += ["--tts-openai-url", f"{URL}/v1", "--stt-openai-key", "unused", "--tts-openai-key", "unused"]
    words += ["--stt-models", "gpt-transcribe", "whisper-1", "--stt-streaming-models", "gpt-4o-mini-transcribe"]
    words += ["--tts-models", "gpt-4o-mini-tts"]
    if backend:
        words += ["--stt-backend", *backend, "--tts-backend", *backend]
    with (FOLDER / f"wyoming{'_'.join(backend)}.log").open("wb") as log:
        command = [sys.executable, "-m", "wyoming_openai", *words]
        process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log, env=os.environ)
        try:
            while True:
                try:
                    async with AsyncTcpClient("127.0.0.1", port) as client:
                        yield client
                    break
                except ConnectionRefusedError:
                    if process.returncode is not None:
                        raise RuntimeError(Path(log.name).read_text()) from None
                    await asyncio.sleep(0.2)
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


async def until(client: AsyncTcpClient, kind) -> list:
    events = []
    while True:
        event = await client.read_event()
        if event is None:
            raise RuntimeError("the bridge closed the connection")
        events.append(event)
        if kind.is_type(event.type):
            return events


async def transcribe(client: AsyncTcpClient, model: str) -> str:
    await client.write_event(Transcribe(name=model, language="en").event())
    form = {"rate": 24_000, "width": 2, "channels": 1}
    await client.write_event(AudioStart(**form).event())
    data = recorded_pcm()
    for start in range(0, len(data), 4800):
        await client.write_event(AudioChunk(**form, audio=data[start : start + 4800]).event())
    await client.write_event(AudioStop().event())
    return Transcript.from_event((await until(client, Transcript))[-1]).text


async def ask(name: str, backend: list[str]) -> None:
    async with bridge(backend) as client:
        await client.write_event(Describe().event())
        info = Info.from_event((await until(client, Info))[-1])
        voices = [voice.name for program in info.tts for voice in program.voices]
        report(f"{name}: voices", value=bool(voices))
        await client.write_event(Synthesize(text=TEXT, voice=SynthesizeVoice(name=voices[0])).event())
        chunks = [event for event in await until(client, AudioStop) if AudioChunk.is_type(event.type)]
        first = AudioChunk.from_event(chunks[0])
        report(f"{name}: sample rate", value=(first.rate, first.width, first.channels) == (24_000, 2, 1))
        audio = b"".join(AudioChunk.from_event(chunk).audio for chunk in chunks)
        report_audio(f"{name}: speech", audio, "pcm")
        for model in ("gpt-transcribe", "whisper-1", "gpt-4o-mini-transcribe"):
            report(f"{name}: transcription {model}", text=await asyncio.wait_for(transcribe(client, model), 300))


for backend_name, words in BACKENDS.items():
    with attempt(f"{backend_name}: speech"):
        asyncio.run(ask(backend_name, words))
