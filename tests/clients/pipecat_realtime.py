"""Pipecat: an OpenAIRealtimeLLMService with default settings greets, then answers a spoken turn."""

import asyncio

from pipecat.frames.frames import (
    EndFrame,
    ErrorFrame,
    InputAudioRawFrame,
    LLMContextFrame,
    LLMFullResponseEndFrame,
    TTSAudioRawFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.runner import PipelineRunner
from pipecat.pipeline.task import PipelineParams, PipelineTask
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.services.openai.realtime.llm import OpenAIRealtimeLLMService
from report import URL, attempt, recorded_pcm, report


class Sink(FrameProcessor):
    """End of a pipeline that puts frames and errors into a queue."""

    def __init__(self):
        super().__init__()
        self.frames = asyncio.Queue()

    async def process_frame(self, frame, direction):
        await super().process_frame(frame, direction)
        self.frames.put_nowait(frame)
        await self.push_frame(frame, direction)


async def num_samples(frames: asyncio.Queue) -> int:
    num_bytes = 0
    while True:
        frame = await asyncio.wait_for(frames.get(), 300)
        if isinstance(frame, ErrorFrame):
            raise RuntimeError(frame.error)
        if isinstance(frame, TTSAudioRawFrame):
            num_bytes += len(frame.audio)
        if isinstance(frame, LLMFullResponseEndFrame) and num_bytes:
            return num_bytes // 2


async def main() -> None:
    service = OpenAIRealtimeLLMService(
        api_key="unused",
        base_url=f"{URL.replace('http', 'ws', 1)}/v1/realtime",
        settings=OpenAIRealtimeLLMService.Settings(system_instruction="Greet the user."),
    )
    sink = Sink()
    task = PipelineTask(Pipeline([service, sink]), params=PipelineParams(audio_in_sample_rate=24_000))

    @task.event_handler("on_pipeline_error")
    async def on_error(_, frame):
        sink.frames.put_nowait(frame)

    running = asyncio.create_task(PipelineRunner(handle_sigint=False).run(task))
    await task.queue_frame(LLMContextFrame(LLMContext()))
    try:
        report("greeting", num_samples=await num_samples(sink.frames))
        pcm = recorded_pcm()
        for start in range(0, len(pcm), 4800):
            await task.queue_frame(InputAudioRawFrame(pcm[start : start + 4800], 24_000, 1))
        report("spoken turn", num_samples=await num_samples(sink.frames))
    finally:
        await task.queue_frame(EndFrame())
        await asyncio.wait_for(running, 60)


with attempt("session"):
    asyncio.run(main())
