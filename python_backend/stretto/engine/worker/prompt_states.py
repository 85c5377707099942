"""Hidden states in the prompts of replies that a speaker speaks."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.sample.prompt_logprob import PromptLogprobsWorker

from stretto.engine.protocol import first_state_row
from stretto.engine.step_records import SpeechRequestData
from stretto.families.base import Family
from stretto.records.prompt import InputAudio

Audios = tuple[InputAudio, ...]


class PromptStates(PromptLogprobsWorker):
    """Hidden states of the rows of audio input, which are sent with the step that computes the end of the prompt.

    It replaces vLLM's scores of prompt rows, which our requests do not ask for. vLLM copies what it returns to the host
    together with the step's samples. A request whose prompt is computed again after a preemption sends the same states
    again, unless the prefix cache has some of the rows.

    Args:
        states: Hidden states of the step's rows, which the model writes, [max rows, H].
        family: Family with a speaker.
    """

    def __init__(self, states: torch.Tensor, family: Family):
        self._states, self._family = states, family
        self._kept: dict[str, tuple[Audios, torch.Tensor]] = {}  # audio input and states, by request id

    def place(self, data: SpeechRequestData) -> None:
        """Prepare for a request that enters the batch."""
        first = first_state_row(data.prompt, self._family) if data.prompt is not None else None
        if data.prompt is None or first is None or data.num_computed_tokens > first:
            return
        audios = data.prompt.audios
        shape = sum(audio.num_rows for audio in audios), self._states.shape[1]
        self._kept[data.req_id] = audios, torch.empty(shape, dtype=torch.float32, device=self._states.device)

    def add_request(self, req_id: str, req_idx: int, sampling_params: Any) -> None:
        """Do nothing, because `place` has prepared for the request (vLLM's hook)."""

    def remove_request(self, req_id: str) -> None:
        """Drop the states of a request that has ended or was preempted (vLLM's hook)."""
        self._kept.pop(req_id, None)

    def compute_prompt_logprobs(self, *arguments: Any) -> dict[str, Any]:
        """Return nothing, because no request asks for log-probabilities of its prompt (vLLM's hook)."""
        return {}

    def compute_prompt_token_id_logprobs(
        self,
        logits_fn: Callable[[torch.Tensor], torch.Tensor],
        hidden_states: torch.Tensor,
        input_batch: InputBatch,
        prompt_lens: np.ndarray,
    ) -> dict[str, torch.Tensor]:
        """Return the states [n, H] of each request whose prompt ends in this step, by request id (vLLM's hook).

        Args:
            logits_fn: Unused.
            hidden_states: Unused: the output of the last layer.
            input_batch: Batch of the step.
            prompt_lens: Rows of the prompt in each slot.
        """
        complete: dict[str, torch.Tensor] = {}
        if not self._kept:
            return complete
        computed, scheduled = input_batch.num_computed_tokens_np, input_batch.num_scheduled_tokens
        for index, req_id in enumerate(input_batch.req_ids):
            if req_id not in self._kept:
                continue
            (audios, states), first, done = self._kept[req_id], int(computed[index]), 0
            end, begins = first + int(scheduled[index]), int(input_batch.query_start_loc_np[index])
            for audio in audios:
                start, stop = max(first, audio.first_row), min(end, audio.first_row + audio.num_rows)
                if start < stop:
                    at = done + start - audio.first_row
                    states[at : at + stop - start] = self._states[begins + start - first : begins + stop - first]
                done += audio.num_rows
            if end >= prompt_lens[input_batch.idx_mapping_np[index]]:
                complete[req_id] = self._kept.pop(req_id)[1]
        return complete
