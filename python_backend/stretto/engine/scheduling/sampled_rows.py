"""What a step has sampled beside the tokens that vLLM sees, made whole rows of and sent."""

from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.outputs import ModelRunnerOutput

from stretto.engine.scheduling.request_state import RequestState
from stretto.streams.layout import StreamLayout


class SampledRows:
    """The rows of the step whose output is being taken; of a request at most `max_rows`.

    codes: the streams 1 … of the rows of each request that sampled.
    """

    def __init__(self, layout: StreamLayout, max_rows: int) -> None:
        self._num_codes = layout.num_output_streams - 1
        self._shape = max_rows, layout.num_input_streams - 1
        self.codes: dict[str, list[list[int]]] = {}
        self._cut: dict[str, int] = {}
        self._preempted: list[RequestState] = []  # since the last step's output

    def take(self, output: ModelRunnerOutput) -> None:
        """Take the codes, and whose segment a limit closed in which of its rows, a bit for each.

        They come as log-probabilities, which vLLM must not see.
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
        """The rows of a request that leave the engine now that it has sampled others; is_last: of those for a while."""
        request_id, number = state.request.request_id, self._num_codes
        if request_id in self._cut:
            state.was_cut |= self._cut[request_id] & ((1 << len(token_ids)) - 1) > 0
        ids: list[int] = []  # not `list[int]()`, which costs more than the rest
        for mark, token_id, codes in zip(marks, token_ids, self.codes[request_id], strict=False):  # to the end, if any
            ids += (mark, token_id, *codes[:number])
        return state.outgoing.push(ids, is_last)

    def note_preempted(self, state: RequestState) -> None:
        """A request has lost its place, and there is no telling when it will sample again."""
        self._preempted.append(state)

    def send_preempted(self, outputs: dict[int, EngineCoreOutputs]) -> None:
        """Add the rows that preempted requests have ready to what leaves with a step's output."""
        preempted, self._preempted = self._preempted, []
        for state in preempted:
            if ids := state.outgoing.take():
                of_client = outputs.setdefault(state.request.client_index, EngineCoreOutputs())
                of_client.outputs.append(EngineCoreOutput(state.request.request_id, ids))
