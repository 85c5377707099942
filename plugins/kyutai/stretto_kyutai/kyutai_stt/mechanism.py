"""Sampler of pause probabilities, which extra heads of the model predict from each row's hidden state."""

from typing import Any

import torch
from torch import nn
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.sample.output import SamplerOutput

from stretto.engine.worker.predictors import exact_product
from stretto_kyutai.kyutai_stt.family import Pauses


class PauseSampler:
    """Sampler that appends pause probabilities, as bits of float32 numbers, to another sampler's rows of ids."""

    def __init__(self, pauses: Pauses, sampler: Any, model: nn.Module):
        self._sampler = sampler
        self._num_classes = pauses.num_classes
        self._product = exact_product(model.get_parameter("pause_heads.weight").data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sampler, name)

    def __call__(self, hidden: torch.Tensor, batch: InputBatch) -> SamplerOutput:
        """Sample one row for each request of `batch` from its last hidden state in `hidden` [B, H]."""
        logits = self._product(hidden).unflatten(-1, (-1, self._num_classes))
        pauses = logits.softmax(-1)[..., 0].contiguous().view(torch.int32)
        output: SamplerOutput = self._sampler(hidden, batch)
        rows = output.logprobs_tensors
        assert rows is not None, "our samplers put the ids there"
        ids = torch.cat([rows.logprob_token_ids, pauses[: len(rows.logprob_token_ids)]], 1)
        output.logprobs_tensors = rows._replace(logprob_token_ids=ids)
        return output
