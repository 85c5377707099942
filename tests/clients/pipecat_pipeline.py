"""Pipelines of Pipecat with a single service, for scripts that run in its environment."""

import asyncio
import sys

from loguru import logger

logger.remove()
logger.add(sys.stderr, level="WARNING")

from pipecat.frames.frames import EndFrame, ErrorFrame, Frame  # noqa: E402
from pipecat.pipeline.pipeline import Pipeline  # noqa: E402
from pipecat.pipeline.worker import PipelineParams, PipelineWorker  # noqa: E402
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor  # noqa: E402
from pipecat.workers.runner import WorkerRunner  # noqa: E402


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


async def run(service: FrameProcessor, drive, rate: int = 24_000) -> None:
    """Run `drive(worker, frames)` alongside a pipeline with a single service, which receives audio at `rate`."""
    frames = asyncio.Queue()
    worker = PipelineWorker(
        Pipeline([Frames(asyncio.Queue()), service, Frames(frames)]),
        params=PipelineParams(audio_in_sample_rate=rate, audio_out_sample_rate=24_000),
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
