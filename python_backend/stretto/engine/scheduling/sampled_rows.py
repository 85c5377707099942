"""What a step has sampled beside the tokens that vLLM sees, made whole rows of and sent."""

from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.outputs import ModelRunnerOutput

from stretto.engine.scheduling.request_state import RequestState


class SampledRows:
    """The rows of the step whose output is being taken.

    codes: the streams 1 … of the row of each request that sampled.
    """

    def __init__(self, num_output_streams: int) -> None:
        self._num_codes = num_output_streams - 1
        self.codes: dict[str, list[int]] = {}
        self._cut: set[str] = set()
        self._preempted: list[RequestState] = []  # since the last step's output

    def take(self, output: ModelRunnerOutput) -> None:
        """Take the codes, and whose segment a limit closed; they come as log-probabilities, which vLLM must not see."""
        self.codes, self._cut = {}, set()
        if output.logprobs is None:
            return
        logprobs, output.logprobs = output.logprobs, None
        self._cut = {output.req_ids[index] for index in logprobs.sampled_token_ranks.nonzero()[0]}
        self.codes = dict(zip(output.req_ids, logprobs.logprob_token_ids.tolist(), strict=True))

    def push(self, state: RequestState, mark: int, token_id: int, is_last: bool) -> list[int]:
        """The rows of a request that leave the engine now that it has sampled another."""
        request_id = state.request.request_id
        state.was_cut |= request_id in self._cut
        return state.outgoing.push([mark, token_id, *self.codes[request_id][: self._num_codes]], is_last)

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
