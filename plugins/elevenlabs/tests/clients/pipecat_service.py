"""Pipecat: its ElevenLabs services over a WebSocket and over HTTP, each in its own pipeline."""

import asyncio
import sys
from functools import partial

from loguru import logger

logger.remove()
logger.add(sys.stderr, level="WARNING")

import aiohttp  # noqa: E402
from pipecat.frames.frames import (  # noqa: E402
    EndFrame,
    ErrorFrame,
    Frame,
    InterruptionFrame,
    TTSAudioRawFrame,
    TTSSpeakFrame,
    TTSStoppedFrame,
    TTSTextFrame,
)
from pipecat.pipeline.pipeline import Pipeline  # noqa: E402
from pipecat.pipeline.worker import PipelineParams, PipelineWorker  # noqa: E402
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor  # noqa: E402
from pipecat.services.elevenlabs.tts import ElevenLabsHttpTTSService, ElevenLabsTTSService  # noqa: E402
from pipecat.workers.runner import WorkerRunner  # noqa: E402
from report import TEXT, URL, attempt, report, report_audio  # noqa: E402

VOICE = "21m00Tcm4TlvDq8ikWAM"  # of Pipecat's examples


class Frames(FrameProcessor):
    """Recorder of frames that pass downstream and errors that pass upstream."""

    def __init__(self, frames: asyncio.Queue):
        super().__init__()
        self._frames = frames

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, ErrorFrame) or direction is FrameDirection.DOWNSTREAM:
            self._frames.put_nowait(frame)
        await self.push_frame(frame, direction)


async def run(service: FrameProcessor, drive) -> None:
    """Run `drive(worker, frames)` alongside a pipeline with a single service."""
    frames = asyncio.Queue()
    worker = PipelineWorker(
        Pipeline([Frames(asyncio.Queue()), service, Frames(frames)]),
        params=PipelineParams(audio_out_sample_rate=24_000),
        cancel_on_idle_timeout=False,
        enable_rtvi=False,
    )
    started = asyncio.Event()

    @worker.event_handler("on_pipeline_started")
    async def on_started(*_: object) -> None:
        started.set()

    @worker.event_handler("on_pipeline_error")
    async def on_error(_: object, frame: ErrorFrame) -> None:
        frames.put_nowait(frame)

    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    running = asyncio.create_task(runner.run())
    try:
        await asyncio.wait_for(started.wait(), 60)
        await asyncio.wait_for(drive(worker, frames), 200)
    finally:
        await worker.queue_frame(EndFrame())
        await asyncio.wait_for(running, 60)


async def until(frames: asyncio.Queue, kind: type) -> list[Frame]:
    """Return the frames up to the first of this kind; raise on an error."""
    passed = []
    while not passed or not isinstance(passed[-1], kind):
        passed.append(await frames.get())
        if isinstance(passed[-1], ErrorFrame):
            raise RuntimeError(passed[-1].error)
    return passed


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
