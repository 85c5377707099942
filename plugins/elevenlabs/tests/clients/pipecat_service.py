"""Pipecat: its ElevenLabs services over a WebSocket and over HTTP, each in its own pipeline."""

import asyncio
from functools import partial

import aiohttp
from pipecat.frames.frames import (
    InterruptionFrame,
    TTSAudioRawFrame,
    TTSSpeakFrame,
    TTSStoppedFrame,
    TTSTextFrame,
)
from pipecat.services.elevenlabs.tts import ElevenLabsHttpTTSService, ElevenLabsTTSService
from pipecat_pipeline import run, until
from report import TEXT, URL, attempt, report, report_audio

VOICE = "21m00Tcm4TlvDq8ikWAM"  # of Pipecat's examples


async def speak(step, worker, frames) -> None:
    await worker.queue_frame(TTSSpeakFrame(TEXT))
    passed = await until(frames, TTSStoppedFrame)
    report_audio(step, b"".join(frame.audio for frame in passed if isinstance(frame, TTSAudioRawFrame)), "pcm")
    words = [frame.text for frame in passed if isinstance(frame, TTSTextFrame)]
    report(f"{step}: words", value=" ".join(words).split() == TEXT.split() or [])
    await worker.queue_frame(TTSSpeakFrame(f"{TEXT} " * 10))
    await until(frames, TTSAudioRawFrame)
    await worker.queue_frame(InterruptionFrame())
    await until(frames, InterruptionFrame)
    report(f"{step}: interrupted", value=True)


async def main() -> None:
    socket = ElevenLabsTTSService(
        api_key="unused",
        url=URL.replace("http", "ws", 1),
        settings=ElevenLabsTTSService.Settings(voice=VOICE),
        stop_frame_timeout_s=120,
    )
    with attempt("ElevenLabsTTSService"):
        await run(socket, partial(speak, "ElevenLabsTTSService"))
    async with aiohttp.ClientSession() as session:
        http = ElevenLabsHttpTTSService(
            api_key="unused",
            aiohttp_session=session,
            base_url=URL,
            settings=ElevenLabsHttpTTSService.Settings(voice=VOICE),
            stop_frame_timeout_s=120,
        )
        with attempt("ElevenLabsHttpTTSService"):
            await run(http, partial(speak, "ElevenLabsHttpTTSService"))


asyncio.run(main())
