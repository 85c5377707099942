"""Voice bot at this computer's microphone and loudspeaker.

    pip install 'pipecat-ai[local,openai]' ./integrations/pipecat
    OPENAI_API_KEY=... python bot.py http://localhost:8003/v1

Stretto transcribes and speaks; the replies are written by OpenAI's default model.
"""

import asyncio
import sys

from pipecat.audio.vad.silero import SileroVADAnalyzer
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair, LLMUserAggregatorParams
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.services.openai.llm import OpenAILLMService
from pipecat.services.openai.stt import OpenAIRealtimeSTTService
from pipecat.workers.runner import WorkerRunner
from pipecat_stretto import StrettoTTSService

ROLE = {"role": "system", "content": "You talk with a caller. Answer in one or two sentences, without formatting."}


def make_worker(url: str, source: FrameProcessor, sink: FrameProcessor) -> PipelineWorker:
    """Return the bot, which connects an audio input and an audio output."""
    socket = f"{url.replace('http', 'ws', 1)}/realtime"
    # The context keeps what was heard: after an interruption, only the words up to it.
    context = LLMContextAggregatorPair(
        LLMContext([ROLE]), user_params=LLMUserAggregatorParams(vad_analyzer=SileroVADAnalyzer())
    )
    steps = [
        source,
        OpenAIRealtimeSTTService(api_key="unused", base_url=socket),
        context.user(),
        OpenAILLMService(),
        StrettoTTSService(base_url=url, settings=StrettoTTSService.Settings(voice="alloy")),
        sink,
        context.assistant(),
    ]
    return PipelineWorker(Pipeline(steps), params=PipelineParams(audio_out_sample_rate=24_000))


async def main() -> None:
    from pipecat.transports.local.audio import LocalAudioTransport, LocalAudioTransportParams

    transport = LocalAudioTransport(LocalAudioTransportParams(audio_in_enabled=True, audio_out_enabled=True))
    runner = WorkerRunner()
    await runner.add_workers(make_worker(sys.argv[1], transport.input(), transport.output()))
    await runner.run()


if __name__ == "__main__":
    asyncio.run(main())
