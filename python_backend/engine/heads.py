"""The rows of `lm_head` that each stream needs, and no others."""

import itertools

import torch
import torch.nn.functional as F
from torch import nn
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

from python_backend.engine.rules import SegmentRules


class StreamHeads:
    """Three heads over one weight: stream 0 in text, stream 0 in audio, and the auxiliary streams, each over its ids.

    text_ids [V], first_ids [C0 + 1] (the audio interval, then `end_of_audio`) and codes [K, C] say which token id each
    logit stands for.
    """

    def __init__(self, lm_head: nn.Module, rules: SegmentRules):
        assert isinstance(lm_head, ParallelLMHead)
        if lm_head.tp_size != 1:
            raise NotImplementedError(f"tensor_parallel_size: expected 1, got {lm_head.tp_size}")
        family, weight = rules.family, lm_head.get_parameter("weight").data
        first, *others = family.layout.audio
        if len({len(ids) for ids in others}) > 1:
            raise ValueError(f"{family.name}: auxiliary streams must have intervals of one size")
        ids = torch.arange(family.layout.vocab_size, device=weight.device)
        self.text_ids = ids[: rules.num_text_ids]
        self.first_ids = torch.cat([ids[first.start : first.stop], ids[family.end_of_audio : family.end_of_audio + 1]])
        self.codes = torch.stack([ids[s.start : s.stop] for s in others])
        self._text = weight[: rules.num_text_ids]
        self._first = weight[self.first_ids]
        self._codes = _rows(weight, others)

    def text(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits of stream 0 in a text segment: [N, H] -> [N, V] float32."""
        return F.linear(hidden, self._text).float()

    def first(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits of stream 0 in an audio segment: [N, H] -> [N, C0 + 1] float32."""
        return F.linear(hidden, self._first).float()

    def auxiliary(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits of the streams 1 ... in an audio segment: [N, H] -> [N, K, C] float32."""
        return F.linear(hidden, self._codes).float().view(hidden.shape[0], *self.codes.shape)


def _rows(weight: torch.Tensor, intervals: list[range]) -> torch.Tensor:
    """The rows of all `intervals`, one after another: a view where they follow each other, else a copy."""
    if all(ids.stop == after.start for ids, after in itertools.pairwise(intervals)):
        return weight[intervals[0].start : intervals[-1].stop]
    return torch.cat([weight[ids.start : ids.stop] for ids in intervals])
