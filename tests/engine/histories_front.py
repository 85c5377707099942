"""Front end between the engine core and its clients: vLLM's front end without its event loop."""

from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine import EngineCoreOutputs, EngineCoreRequest
from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector

from stretto.engine.protocol import GUIDANCE_ON, NO_CHANGE, Trailer, read_rows
from stretto.engine.reply_rules import SegmentRules
from stretto.records.prompt import Prompt
from stretto.testing.conformance import sampling_params


class Reader:
    """Client that reads pending output, merged as vLLM merges it."""

    def __init__(self, rules: SegmentRules, collector: RequestOutputCollector):
        self.collector, self.width = collector, rules.num_row_words
        self.num_streams = rules.family.layout.num_output_streams
        self.rows: list[list[int]] = []
        self.trailer: Trailer | None = None
        self.changes: list[tuple[int, bool]] = []
        self.num_merged = 0

    def look(self) -> bool:
        """Read pending output; return True if the reply is complete."""
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
        self.num_merged += len(ids) > 2 * self.width
        for mark, *row in read_rows(ids, self.width).tolist():
            if mark != NO_CHANGE:
                self.changes.append((len(self.rows), mark == GUIDANCE_ON))
            self.rows.append(row[: self.num_streams])
        return output.finished


class FrontEnd:
    """vLLM's output processor and its clients."""

    def __init__(self, rules: SegmentRules):
        self.rules = rules
        self.processor = OutputProcessor(None, log_stats=False)

    def add(self, request_id: str, prompt: Prompt) -> Reader:
        """Return a reader for a request that is about to be queued."""
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
        return Reader(self.rules, collector)

    def abort(self, request_id: str) -> bool:
        """Disconnect the client; return True if the engine core must be notified."""
        return bool(self.processor.abort_requests([request_id], internal=True))

    def take(self, outputs: dict[int, EngineCoreOutputs] | None) -> None:
        """Process the outputs of a step."""
        for core_outputs in (outputs or {}).values():
            done = self.processor.process_outputs(core_outputs.outputs)
            assert not done.reqs_to_abort

    def is_empty(self) -> bool:
        """Return True if no state of any request is left."""
        return not self.processor.request_states and not self.processor.external_req_ids
