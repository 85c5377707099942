"""Hidden states of the writer's prompt rows, for replies that the talker speaks."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from vllm.config import VllmConfig
from vllm.model_executor.models.interfaces import EagleModelMixin
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.sample.prompt_logprob import PromptLogprobsWorker

from stretto.engine.step_records import SpeechRequestData
from stretto.errors import CheckpointError
from stretto.family.base import Family
from stretto.records.prompt import InputAudio, InputImage
from stretto_qwen3_omni.qwen3_omni.family import Talker
from stretto_qwen3_omni.qwen3_omni.mechanism.state_rows import spoken_inputs


def keep_states(talker: Talker, model: Any, vllm_config: VllmConfig) -> None:
    """Make a model keep the input of the layer that the talker reads (`Speaker.extend`).

    The model writes the hidden states of the step's rows to its attribute `layer_states`, [max rows, H], where they are
    valid until the next step. CheckpointError is raised if there is no such layer.
    """
    config = vllm_config.model_config
    max_rows = vllm_config.scheduler_config.max_num_batched_tokens
    layer = talker.state_layer
    number = config.get_total_num_hidden_layers()
    if not 0 <= layer < number:
        raise CheckpointError(f"config.json: state_layer: expected a layer in [0, {number}), got {layer}")
    if not isinstance(model.model, EagleModelMixin):
        expected = "a backbone that returns hidden states, because the family has a speaker"
        raise CheckpointError(f"config.json: architectures: expected {expected}, got {type(model.model).__name__}")
    model.model._set_aux_hidden_state_layers((layer,))
    assert isinstance(config.dtype, torch.dtype)
    kept = model.layer_states = torch.zeros(max_rows, config.get_hidden_size(), dtype=config.dtype)

    def keep(_: Any, inputs: Any, output: tuple[torch.Tensor, list[torch.Tensor]]) -> torch.Tensor:
        hidden, (states,) = output
        kept[: len(states)].copy_(states)
        return hidden

    model.register_forward_hook(keep)


class PromptStates(PromptLogprobsWorker):
    """Hidden states of the rows of audio and images, sent to the scheduler by each step that computes such rows.

    It replaces vLLM's log-probabilities of prompts, which no request asks for. vLLM copies the states to the host
    together with the step's samples, so none are kept on the device. A request whose prompt is computed again after a
    preemption sends the same states again.
    """

    def __init__(self, talker: Talker, model: Any):
        self._states: torch.Tensor = model.layer_states
        self._family: Family = model.family
        # Of prompts that are being computed, by request id.
        self._inputs: dict[str, tuple[InputAudio | InputImage, ...]] = {}

    def begin(self, data: SpeechRequestData) -> None:
        """Prepare for a request that enters the batch."""
        assert data.prompt is not None
        if inputs := spoken_inputs(self._family, data.prompt):
            self._inputs[data.req_id] = inputs

    def add_request(self, req_id: str, req_idx: int, sampling_params: Any) -> None:
        """Do nothing, because `begin` has prepared for the request (vLLM's hook)."""

    def remove_request(self, req_id: str) -> None:
        """Forget a request that has ended or was preempted (vLLM's hook)."""
        self._inputs.pop(req_id, None)

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
        """Return the states of the step's rows of audio and images, float32 [n, 1 + H], by request id (vLLM's hook).

        Column 0 is the position of the row. The last layer's `hidden_states` are not used.
        """
        states_by_request: dict[str, torch.Tensor] = {}
        if not self._inputs:
            return states_by_request
        computed = input_batch.num_computed_tokens_np
        scheduled = input_batch.num_scheduled_tokens
        for index, req_id in enumerate(input_batch.req_ids):
            first = int(computed[index])
            parts = list[torch.Tensor]()
            end = first + int(scheduled[index])
            begins = int(input_batch.query_start_loc_np[index])
            inputs = self._inputs.get(req_id, ())
            for audio_or_image in inputs:
                start = max(first, audio_or_image.first_row)
                stop = min(end, audio_or_image.first_row + audio_or_image.num_rows)
                if start < stop:
                    states = self._states[begins + start - first : begins + stop - first].float()
                    positions = torch.arange(start, stop, dtype=torch.float32, device=states.device)
                    parts.append(torch.cat([positions[:, None], states], 1))
            if parts:
                states_by_request[req_id] = torch.cat(parts)
            if inputs and end >= inputs[-1].first_row + inputs[-1].num_rows:
                del self._inputs[req_id]
        return states_by_request
