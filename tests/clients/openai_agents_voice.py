"""OpenAI Agents SDK: a VoicePipeline with default models and settings reads a recording and a live stream.

The workflow repeats the transcript, so that no language model is needed. Traces are off, because they go to OpenAI.
"""

import asyncio
import os

import numpy as np
from report import TEXT, attempt, recorded_pcm, report, report_audio

os.environ["OPENAI_AGENTS_DISABLE_TRACING"] = "1"

from agents.voice import AudioInput, StreamedAudioInput, VoicePipeline, VoiceWorkflowBase


class Answer(VoiceWorkflowBase):
    """Workflow with a fixed reply, so that its request does not depend on the transcript."""

    def __init__(self):
        self.transcripts = []

    async def run(self, transcription):
        self.transcripts.append(transcription)
        yield TEXT


async def collect(result) -> bytes:
    parts = []
    async for event in result.stream():
        if event.type == "voice_stream_event_audio" and event.data is not None:
            parts.append(event.data.tobytes())
        if event.type == "voice_stream_event_error":
            raise event.error
    return b"".join(parts)


async def whole(samples: np.ndarray) -> None:
    workflow = Answer()
    audio = await collect(await VoicePipeline(workflow=workflow).run(AudioInput(buffer=samples)))
    report("pipeline: transcript", text=" ".join(workflow.transcripts))
    report_audio("pipeline: speech", audio, "pcm")


async def streamed(samples: np.ndarray) -> None:
    workflow, stream = Answer(), StreamedAudioInput()
    running = asyncio.create_task(collect(await VoicePipeline(workflow=workflow).run(stream)))
    for start in range(0, len(samples), 2400):
        await stream.add_audio(samples[start : start + 2400])
        await asyncio.sleep(0.02)
    await stream.add_audio(None)
    audio = await asyncio.wait_for(running, 300)
    report("streamed pipeline: transcript", text=" ".join(workflow.transcripts))
    report_audio("streamed pipeline: speech", audio, "pcm")


async def main() -> None:
    samples = np.frombuffer(recorded_pcm(), np.int16)
    with attempt("pipeline: speech"):
        await whole(samples)
    with attempt("streamed pipeline: speech"):
        await streamed(samples)


asyncio.run(main())
