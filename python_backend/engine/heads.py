"""The rows of `lm_head` that each stream needs, and no others.

With tensor parallelism every rank draws every row (the noise is a function of seed, position, stream and id, so all
ranks draw the same), and a head is either whole on each rank or cut by vocabulary:

- The audio heads are whole. A step needs 1 + 8 × 1025 rows of 4096 bf16 numbers, 67 MB, of a published model; cut in
  two they would save 34 MB and 7 µs of memory traffic at 4.8 TB/s, and cost a gather of logits in every step, which
  takes longer than that.
- The text head is vLLM's own shard where it is larger than a shard (152,192 rows, 1.25 GB); its logits are gathered.
"""

import itertools

import torch
from torch import nn
from vllm.distributed import tensor_model_parallel_all_gather, tensor_model_parallel_all_reduce
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

from python_backend.engine.cpu_kernels.products import Product
from python_backend.engine.rules import SegmentRules


class StreamHeads:
    """Three heads over one weight: stream 0 in text, stream 0 in audio, and the auxiliary streams, each over its ids.

    text_ids [V], first_ids [C0 + 1] (the audio interval, then `end_of_audio`) and codes [K, C] say which token id each
    logit stands for.
    """

    def __init__(self, lm_head: nn.Module, rules: SegmentRules):
        assert isinstance(lm_head, ParallelLMHead)
        family, weight = rules.family, _WeightRows(lm_head)
        first, *others = family.layout.audio
        if len({len(ids) for ids in others}) > 1:
            raise ValueError(f"{family.name}: auxiliary streams must have intervals of one size")
        ids = torch.arange(family.layout.vocab_size, device=weight.own.device)
        self.text_ids = ids[: rules.num_text_ids]
        self.first_ids = torch.cat([ids[first.start : first.stop], ids[family.end_of_audio : family.end_of_audio + 1]])
        self.codes = torch.stack([ids[s.start : s.stop] for s in others])
        self._is_text_cut = weight.is_cut and rules.num_text_ids > weight.size
        self._text = Product(weight.own if self._is_text_cut else weight.span(range(rules.num_text_ids)))
        self._first = Product(weight.take(self.first_ids))
        self._codes = Product(weight.spans(others))

    def text(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits of stream 0 in a text segment: [N, H] -> [N, V] float32."""
        logits = self._text(hidden)
        if self._is_text_cut:
            logits = tensor_model_parallel_all_gather(logits)[:, : len(self.text_ids)]
        return logits.float()

    def first(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits of stream 0 in an audio segment: [N, H] -> [N, C0 + 1] float32."""
        return self._first(hidden).float()

    def auxiliary(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits of the streams 1 ... in an audio segment: [N, H] -> [N, K, C] float32."""
        return self._codes(hidden).float().view(hidden.shape[0], *self.codes.shape)


class _WeightRows:
    """Rows of a head's weight by token id; with tensor parallelism gathered from the ranks that hold them."""

    def __init__(self, lm_head: ParallelLMHead):
        self.own, self.is_cut = lm_head.get_parameter("weight").data, lm_head.tp_size > 1
        self.size = len(self.own)
        shard = lm_head.shard_indices
        self._start, self._stop = shard.org_vocab_start_index, shard.org_vocab_end_index

    def take(self, ids: torch.Tensor) -> torch.Tensor:
        """The rows of `ids` [n]: a copy, the same on every rank."""
        if not self.is_cut:
            return self.own[ids]
        is_own = (ids >= self._start) & (ids < self._stop)
        rows = self.own.new_zeros(len(ids), self.own.shape[1])
        rows[is_own] = self.own[ids[is_own] - self._start]
        return tensor_model_parallel_all_reduce(rows)  # one rank brings each row, the others zeros: exact

    def span(self, ids: range) -> torch.Tensor:
        """The rows of consecutive ids: a view where this rank holds them all, as does every other."""
        if not self.is_cut:
            return self.own[ids.start : ids.stop]
        return self.take(torch.arange(ids.start, ids.stop, device=self.own.device))

    def spans(self, intervals: list[range]) -> torch.Tensor:
        """The rows of all `intervals`, one after another: a view where they follow each other, else a copy."""
        if all(ids.stop == after.start for ids, after in itertools.pairwise(intervals)):
            return self.span(range(intervals[0].start, intervals[-1].stop))
        return torch.cat([self.span(ids) for ids in intervals])
