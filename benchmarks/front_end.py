"""Processor time of the front end: recorded steps of an engine, played to `SpeechLLM` by vLLM's output processor."""

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
    """Replacement of `AsyncLLM` with recorded outputs, each step encoded as the engine's process sends it."""

    def __init__(self, steps: list[EngineCoreOutputs]):
        self._processor = OutputProcessor(None, log_stats=False)
        encoder = MsgpackEncoder()
        self._steps = [encoder.encode(outputs) for outputs in steps]

    async def generate(
        self, inputs: Any, params: SamplingParams, request_id: str, lora_request: None = None
    ) -> AsyncGenerator[RequestOutput]:
        """Yield the outputs of one request as they arrive."""
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
        """Send all steps; each one is consumed before the next is sent."""
        decoder = MsgpackDecoder(EngineCoreOutputs)
        for step in self._steps:
            self._processor.process_outputs(decoder.decode(step).outputs)
            for _ in range(3):  # for a task that wakes up, and for tasks that it wakes up
                await asyncio.sleep(0)


def cpu_ms_per_frame(steps: list[EngineCoreOutputs], prompts: Mapping[str, Prompt], config: Any) -> float:
    """Return milliseconds of processor time per frame from the engine's process to the chunks of `prompts`, by id."""
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
