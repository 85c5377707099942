"""What the front end costs: recorded steps of an engine, played to `SpeechLLM` by vLLM's own output processor."""

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from stretto.engine.environment import prepare_environment
from stretto.records.prompt import Prompt

prepare_environment()

from vllm import SamplingParams  # noqa: E402
from vllm.outputs import RequestOutput  # noqa: E402
from vllm.v1.engine import EngineCoreOutputs, EngineCoreRequest  # noqa: E402
from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector  # noqa: E402
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder  # noqa: E402

from stretto.engine.llm import SpeechLLM  # noqa: E402
from stretto.engine.protocol import SharedStats  # noqa: E402


class RecordedEngine:
    """Stands in the place of `AsyncLLM`: what leaves it was recorded, each step as the engine's process sends it."""

    def __init__(self, steps: list[EngineCoreOutputs]):
        self._processor = OutputProcessor(None, log_stats=False)
        encoder = MsgpackEncoder()
        self._steps = [encoder.encode(outputs) for outputs in steps]

    async def generate(
        self, inputs: Any, params: SamplingParams, request_id: str, lora_request: None = None
    ) -> AsyncGenerator[RequestOutput]:
        """The outputs of one request, as they come."""
        tokens = inputs["prompt_token_ids"]
        request = EngineCoreRequest(request_id, tokens, None, params, None, time.time(), None, None, None)
        request.external_req_id = request_id
        queue = RequestOutputCollector(params.output_kind, request_id)
        self._processor.add_request(request, None, queue=queue)
        is_finished = False
        while not is_finished:
            output = await queue.get()
            assert isinstance(output, RequestOutput)
            is_finished = output.finished
            yield output

    async def play(self) -> None:
        """Send all steps; each is consumed before the next comes."""
        decoder = MsgpackDecoder(EngineCoreOutputs)
        for step in self._steps:
            self._processor.process_outputs(decoder.decode(step).outputs)
            for _ in range(3):  # a task wakes up, and what it wakes up
                await asyncio.sleep(0)


def cpu_ms_per_frame(steps: list[EngineCoreOutputs], prompts: Mapping[str, Prompt], config: Any) -> float:
    """Milliseconds of processor time per frame between the engine's process and the chunks of `prompts`, by id."""
    shared = SharedStats.create(1)
    shared.close()
    engine: Any = RecordedEngine(steps)
    llm = SpeechLLM(engine, config, shared)

    async def consume(request_id: str) -> int:
        chunks = [chunk async for chunk in llm.generate(prompts[request_id], request_id)]
        assert chunks[-1].chunk.report is not None
        return chunks[-1].chunk.report.num_frames

    async def consume_all() -> float:
        tasks = [asyncio.create_task(consume(request_id)) for request_id in prompts]
        await asyncio.sleep(0)
        start = time.thread_time()
        await engine.play()
        num_frames = sum(await asyncio.gather(*tasks))
        return 1e3 * (time.thread_time() - start) / num_frames

    return asyncio.run(consume_all())
