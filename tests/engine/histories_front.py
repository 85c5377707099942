"""What stands between the engine core and its clients: vLLM's own front end, without its event loop."""

import numpy as np
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine import EngineCoreOutputs, EngineCoreRequest
from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector

from python_backend.engine.outputs import Trailer
from python_backend.engine.params import sampling_params
from python_backend.engine.rules import SegmentRules
from python_backend.engine.tracker import SegmentTracker
from python_backend.engine.utterance import Utterance
from python_backend.families.prompt import Prompt
from python_backend.families.tokens import TextCodec, get_text_codec
from python_backend.streams.chunk import Report

REPORT = Report("stop", 0, 0, 0, 0, 1.0, 0, 0.0, None, 0.0)


class _Mute:
    """Reads the text of a family whose tokens spell nothing."""

    def push(self, token_id: int) -> str:
        return ""

    def end(self) -> str:
        return ""


MUTE = TextCodec(reader=lambda task: _Mute(), words=lambda tokens: [])


class Reader:
    """One client's end: whatever has come since it last looked, merged as vLLM merges it."""

    def __init__(self, prompt: Prompt, rules: SegmentRules, collector: RequestOutputCollector):
        family = rules.family
        self.collector, self.width = collector, family.layout.num_output_streams
        self.rows: list[list[int]] = []
        self.trailer: Trailer | None = None
        self.num_looks = self.num_merged = 0
        tracker = SegmentTracker(rules, family.task(prompt.task), prompt.sampling, len(prompt.rows))
        self.utterance = Utterance(tracker, (), get_text_codec("tiny") if family.codec == "tiny" else MUTE)
        self.codes: list[np.ndarray] = []

    def look(self) -> bool:
        """Take what has come; whether that was the last of it."""
        output = self.collector.get_nowait()
        if output is None:
            return False
        assert isinstance(output, RequestOutput)
        (completion,) = output.outputs
        ids = list(completion.token_ids)
        if output.finished:
            assert completion.finish_reason == "stop", completion.finish_reason
            size = len(Trailer._fields)
            self.trailer, ids = Trailer(*ids[-size:]), ids[:-size]
        assert len(ids) % self.width == 0, "half a row"
        self.num_looks += 1
        self.num_merged += len(ids) > self.width
        for start in range(0, len(ids), self.width):
            row = ids[start : start + self.width]
            self.rows.append(row)
            self.codes += [chunk.codes for chunk in self.utterance.push(row) if chunk.codes is not None]
        if output.finished and (rest := self.utterance.finish(REPORT).codes) is not None:
            self.codes.append(rest)
        return output.finished


class FrontEnd:
    """vLLM's output processor and the readers behind it."""

    def __init__(self, rules: SegmentRules):
        self.rules = rules
        self.processor = OutputProcessor(None, log_stats=False)

    def add(self, request_id: str, prompt: Prompt) -> Reader:
        """A reader for a request that is about to be queued."""
        params = sampling_params(prompt, self.rules)
        request = EngineCoreRequest(
            request_id=request_id,
            prompt_token_ids=prompt.rows[:, 0].tolist(),
            mm_features=None,
            sampling_params=params,
            pooling_params=None,
            arrival_time=0.0,
            lora_request=None,
            cache_salt=None,
            data_parallel_rank=None,
            external_req_id=request_id,
        )
        collector = RequestOutputCollector(RequestOutputKind.DELTA, request_id)
        self.processor.add_request(request, None, queue=collector)
        return Reader(prompt, self.rules, collector)

    def abort(self, request_id: str) -> bool:
        """The client has gone; whether the engine core must be told."""
        return bool(self.processor.abort_requests([request_id], internal=True))

    def take(self, outputs: dict[int, EngineCoreOutputs] | None) -> None:
        """What a step gave."""
        for core_outputs in (outputs or {}).values():
            done = self.processor.process_outputs(core_outputs.outputs)
            assert not done.reqs_to_abort

    def is_empty(self) -> bool:
        """Whether no request left anything behind."""
        return not self.processor.request_states and not self.processor.external_req_ids
