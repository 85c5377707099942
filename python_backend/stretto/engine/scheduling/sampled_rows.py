"""Rows that a step has sampled, extracted from its output."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.outputs import ModelRunnerOutput

from stretto.engine.reply_rules import SegmentRules
from stretto.engine.scheduling.request_state import RequestState


class SampledRows:
    """Rows sampled in the step whose output is being processed.

    Attributes:
        codes: Ids of streams 1 to S - 1, [n][S - 1], keyed by request id.
        state: Values of `SegmentRules.sent_state` after each row, [n][C], keyed by id of the conditional request.
        prompt_states: Hidden states of rows of prompts, with their positions, float32 [n, 1 + H], keyed by request id.
        first_frames: Codes and samples of replies' first frames, float32 [n], keyed by request id.
    """

    def __init__(self, rules: SegmentRules) -> None:
        layout = rules.family.layout
        self._num_pauses = len(rules.family.pauses_s)
        self._num_sent = layout.num_output_streams - 1
        self._num_others = layout.num_input_streams - 1
        self._shape = rules.max_rows_per_step, self._num_others + len(rules.sent_state)
        self._pauses: dict[str, list[int]] = {}  # pause probabilities, as words, by request id
        self.codes: dict[str, list[list[int]]] = {}
        self.state: dict[str, list[list[int]]] = {}
        self.prompt_states: dict[str, torch.Tensor] = {}
        self.first_frames: dict[str, torch.Tensor] = {}
        self._cut: dict[str, int] = {}
        self._preempted: list[RequestState] = []  # preempted since the previous step's output

    def extract(self, output: ModelRunnerOutput) -> None:
        """Read codes, state and cut flags from a step's output, and remove the fields that carry them.

        vLLM must not process these fields. Codes, state and cut flags are in the log probabilities. Hidden states of
        prompts and first samples are in fields for log probabilities of prompts.
        """
        self.codes = {}
        self.state = {}
        self._cut = {}
        self.prompt_states = output.prompt_token_id_logprobs_dict
        output.prompt_token_id_logprobs_dict = {}
        first_frames: Any = output.prompt_logprobs_dict
        self.first_frames = first_frames
        output.prompt_logprobs_dict = {}
        if output.logprobs is None:
            return
        logprobs = output.logprobs
        output.logprobs = None
        cuts = logprobs.sampled_token_ranks.tolist()
        if any(cuts):
            self._cut = {request_id: cut for request_id, cut in zip(output.req_ids, cuts, strict=True) if cut}
        words = logprobs.logprob_token_ids
        if self._num_pauses:
            words, pauses = np.split(words, [-self._num_pauses], 1)
            self._pauses = dict(zip(output.req_ids, pauses.tolist(), strict=True))
        rows = words.reshape(len(output.req_ids), *self._shape)
        codes = rows[..., : self._num_others].tolist()
        state = rows[..., self._num_others :].tolist()
        if self._shape[0] > 1:
            codes = [of_one[: len(ids)] for of_one, ids in zip(codes, output.sampled_token_ids, strict=True)]
        self.codes = dict(zip(output.req_ids, codes, strict=True))
        self.state = dict(zip(output.req_ids, state, strict=True))

    def push(self, state: RequestState, marks: list[int], token_ids: list[int], is_last: bool) -> list[int]:
        """Add a request's sampled rows and return those to send to the front end now, as parsed by `read_rows`.

        Args:
            is_last: True to send all buffered rows, because no row will follow soon.
        """
        request_id = state.request.request_id
        number = self._num_sent
        if request_id in self._cut:
            is_cut = self._cut[request_id] & ((1 << len(token_ids)) - 1) > 0
            state.was_cut |= is_cut and not state.has_followed_track
        pauses = self._pauses[request_id] if self._num_pauses else ()
        ids: list[int] = []  # `list[int]()` would cost more than the rest
        # rows after the end are dropped
        rows = zip(marks, token_ids, self.codes[request_id], self.state[request_id], strict=False)
        for mark, token_id, codes, values in rows:
            ids += (mark, token_id, *codes[:number], *pauses, *values)
        return state.outgoing.push(ids, is_last)

    def receivers(self, table: Mapping[str, RequestState]) -> list[RequestState]:
        """Return the states of requests in `table` to which the step's hidden states and first frames are sent."""
        return [table[request_id] for request_id in (*self.prompt_states, *self.first_frames) if request_id in table]

    def send_tensors(self, outputs: dict[int, EngineCoreOutputs], state: RequestState) -> None:
        """Add hidden states or first frames to the outputs of a step, before its rows.

        Hidden states of a prompt are recorded, and sent once all are known.
        """
        request_id = state.request.request_id
        sent = self.first_frames.get(request_id)
        prompt_states = state.prompt_states
        if sent is None and prompt_states is not None:  # otherwise already sent: the prompt was computed again
            prompt_states.put(self.prompt_states[request_id].numpy())
            if prompt_states.first_unknown is None:
                sent = torch.from_numpy(prompt_states.states)
                state.prompt_states = None
        if sent is not None:
            of_client = outputs.setdefault(state.request.client_index, EngineCoreOutputs())
            of_client.outputs.insert(0, EngineCoreOutput(request_id, [], pooling_output=sent))

    def note_preempted(self, state: RequestState) -> None:
        """Record a preempted request, so that its unsent rows are sent with the next output."""
        self._preempted.append(state)

    def send_preempted(self, outputs: dict[int, EngineCoreOutputs]) -> None:
        """Add the unsent rows of preempted requests to the outputs of a step."""
        preempted = self._preempted
        self._preempted = []
        for state in preempted:
            if ids := state.outgoing.pop_rows():
                of_client = outputs.setdefault(state.request.client_index, EngineCoreOutputs())
                of_client.outputs.append(EngineCoreOutput(state.request.request_id, ids))
