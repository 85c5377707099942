"""Rows sampled in a step: tokens of stream 0 joined with the codes of the other streams."""

from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.outputs import ModelRunnerOutput

from stretto.engine.scheduling.request_table import RequestState
from stretto.streams.layout import StreamLayout


class SampledRows:
    """Rows of the step whose output is processed, at most `max_rows` per request.

    Attributes:
        codes: Codes of streams 1 and up by request id, [n][S - 1].
    """

    def __init__(self, layout: StreamLayout, max_rows: int) -> None:
        self._num_codes = layout.num_output_streams - 1
        self._shape = max_rows, layout.num_input_streams - 1
        self.codes: dict[str, list[list[int]]] = {}
        self._cut: dict[str, int] = {}
        self._preempted: list[RequestState] = []  # preempted since the previous step's output

    def take(self, output: ModelRunnerOutput) -> None:
        """Take the codes, and the rows in which a length limit ended a segment, out of `output`.

        Both travel in the log-probability fields, which are removed here because vLLM must not process them.
        """
        self.codes, self._cut = {}, {}
        if output.logprobs is None:
            return
        logprobs, output.logprobs = output.logprobs, None
        cuts = logprobs.sampled_token_ranks.tolist()
        if any(cuts):
            self._cut = {request_id: cut for request_id, cut in zip(output.req_ids, cuts, strict=True) if cut}
        codes = logprobs.logprob_token_ids.reshape(len(output.req_ids), *self._shape).tolist()
        if self._shape[0] > 1:
            codes = [rows[: len(ids)] for rows, ids in zip(codes, output.sampled_token_ids, strict=True)]
        self.codes = dict(zip(output.req_ids, codes, strict=True))

    def push(self, state: RequestState, marks: list[int], token_ids: list[int], is_last: bool) -> list[int]:
        """Return the rows of a request to send now; `is_last` if no further row follows for a while."""
        request_id, number = state.request.request_id, self._num_codes
        if request_id in self._cut:
            state.was_cut |= self._cut[request_id] & ((1 << len(token_ids)) - 1) > 0
        ids: list[int] = []  # `list[int]()` would cost more than the rest
        for mark, token_id, codes in zip(marks, token_ids, self.codes[request_id], strict=False):  # up to the end
            ids += (mark, token_id, *codes[:number])
        return state.outgoing.push(ids, is_last)

    def note_preempted(self, state: RequestState) -> None:
        """Record a preempted request, which may not sample again for a long time."""
        self._preempted.append(state)

    def send_preempted(self, outputs: dict[int, EngineCoreOutputs]) -> None:
        """Add the waiting rows of preempted requests to the outputs of a step."""
        preempted, self._preempted = self._preempted, []
        for state in preempted:
            if ids := state.outgoing.take():
                of_client = outputs.setdefault(state.request.client_index, EngineCoreOutputs())
                of_client.outputs.append(EngineCoreOutput(state.request.request_id, ids))
