"""Rows of `lm_head` that each stream needs.

With tensor parallelism every rank draws every row. The noise is a function of seed, position, stream and id, so all
ranks draw the same ids. A head is either complete on each rank or split by vocabulary:

- Audio heads are complete. For a published model a step reads 1 + 8 × 1025 rows of 4096 bf16 numbers, 67 MB. Splitting
  them over two ranks would save 34 MB, or 7 µs at 4.8 TB/s, but cost a gather of logits per step, which takes longer.
- The text head is vLLM's own shard if it is larger than a shard (152,192 rows, 1.25 GB). Its logits are gathered.

Audio logits are computed in float32, so that guidance does not amplify rounding; on a GPU text logits are, too. On the
CPU the text head, which is not guided, is not copied for that.
"""

from collections.abc import Callable

import torch
from torch import nn
from vllm.distributed import tensor_model_parallel_all_gather, tensor_model_parallel_all_reduce
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

from stretto.engine.kernels.cpu import products as on_host
from stretto.engine.kernels.gpu import products as on_device
from stretto.engine.request.rules import SegmentRules

EVERY = slice(None)  # all of streams 1 and up
Product = Callable[[torch.Tensor], torch.Tensor]


def exact_product(rows: torch.Tensor) -> Product:
    """Return a float32 product `x @ rows.T` with a constant weight, for the weight's device."""
    return (on_host if rows.device.type == "cpu" else on_device).Float32Product(rows)


class StreamHeads:
    """Heads over one weight: stream 0 in text, stream 0 in audio, and the other streams.

    A stream with a bias b has the logits W (h + b) = W h + W b, with the second term precomputed in float32.

    Attributes:
        text_ids: Token id of each text logit, [V].
        first_ids: Token id of each logit of stream 0 in audio, [C0 + E]: codes and markers, then end ids.
        codes: Token id of each logit of the other streams, [K, C].
        is_text_cut: True if ranks exchange text logits.
    """

    def __init__(self, lm_head: nn.Module, rules: SegmentRules, stream_bias: torch.Tensor | None = None):
        assert isinstance(lm_head, ParallelLMHead)
        family, weight = rules.family, _WeightRows(lm_head)
        first, *others = (rules.audio_ids(stream) for stream in range(family.layout.num_output_streams))
        if len({len(ids) for ids in others}) > 1:
            raise ValueError(f"{family.name}: auxiliary streams must have as many ids each")
        device = weight.own.device
        self.text_ids = torch.arange(rules.num_text_ids, device=device)
        self.first_ids = torch.tensor([*first, *rules.drawn_ends_of_audio], device=device)
        size = len(others[0]) if others else 0
        self.codes = torch.tensor(others, dtype=torch.int64, device=device).view(len(others), size)
        self.is_text_cut = weight.is_cut and rules.num_text_ids > weight.size
        text_rows = weight.own if self.is_text_cut else weight.span(range(rules.num_text_ids))
        first_rows, code_rows = weight.take(self.first_ids), weight.rows([token for ids in others for token in ids])
        self._text: Product = (on_host.Product if device.type == "cpu" else on_device.Float32Product)(text_rows)
        self._first, self._codes = exact_product(first_rows), exact_product(code_rows)
        self.text_offset = self.first_offset = self.code_offset = None
        if stream_bias is not None:
            by_stream = code_rows.view(*self.codes.shape, -1)
            self.text_offset = self._gather(_offset(text_rows, stream_bias[0])[None])[0]
            self.first_offset = _offset(first_rows, stream_bias[0])
            pairs = zip(by_stream, stream_bias[1:], strict=True)
            self.code_offset = torch.cat([_offset(rows, bias) for rows, bias in pairs])

    def raw_text(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return `text` without the bias term; rows may be strided."""
        return self._gather(self._text(hidden))

    def raw_first(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return `first` without the bias term; rows may be strided."""
        return self._first(hidden)

    def raw_codes(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits of streams 1 and up without the bias term: [N, H] -> float32 [N, K * C]."""
        return self._codes(hidden)

    def text(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits of stream 0 in a text segment: [N, H] -> float32 [N, V]."""
        return _shift(self.raw_text(hidden), self.text_offset)

    def first(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits of stream 0 in an audio segment: [N, H] -> float32 [N, C0 + E]."""
        return _shift(self.raw_first(hidden), self.first_offset)

    def shifted(self, logits: torch.Tensor, streams: slice) -> torch.Tensor:
        """Add the bias term to raw logits of `streams` of streams 1 and up: [N, k * C] -> float32 [N, k, C]."""
        num_streams, num_codes = len(range(len(self.codes))[streams]), self.codes.shape[1]
        offset = self.code_offset
        if offset is not None and streams != EVERY:
            offset = offset.view(self.codes.shape)[streams].reshape(-1)
        return _shift(logits, offset).reshape(len(logits), num_streams, num_codes)

    def _gather(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the logits over all text ids, gathered from all ranks if the head is split."""
        if not self.is_text_cut:
            return logits
        return tensor_model_parallel_all_gather(logits)[:, : len(self.text_ids)]


class FirstHead(StreamHeads):
    """Head of stream 0 in audio, for a family without text whose frames a depth transformer completes.

    Args:
        rows: Weight, [C0 + E, H], complete on each rank.
        rules: Rules of the family.
    """

    def __init__(self, rows: torch.Tensor, rules: SegmentRules):
        first, *others = (rules.audio_ids(stream) for stream in range(rules.family.layout.num_output_streams))
        self.text_ids = torch.arange(0, device=rows.device)
        self.first_ids = torch.tensor([*first, *rules.drawn_ends_of_audio], device=rows.device)
        size = len(others[0]) if others else 0
        self.codes = torch.tensor(others, dtype=torch.int64, device=rows.device).view(len(others), size)
        self.is_text_cut = False
        self._first = exact_product(rows)
        self.text_offset = self.first_offset = self.code_offset = None


class AudioHeads(FirstHead):
    """Heads of all streams in audio, for a family without text whose streams are drawn at once.

    Args:
        rows: Weights of all streams, [n, H], complete on each rank; stream 0's end ids follow its codes.
        rules: Rules of the family.
    """

    def __init__(self, rows: torch.Tensor, rules: SegmentRules):
        super().__init__(rows[: len(rules.audio_ids(0)) + len(rules.drawn_ends_of_audio)], rules)
        self._codes = exact_product(rows[len(self.first_ids) :])


def _offset(rows: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Return the logits of a bias [H]: rows [n, H] -> float32 [n], computed in parts to save memory."""
    return torch.cat([some.float() @ bias.float() for some in rows.split(8192)])


def _shift(logits: torch.Tensor, offset: torch.Tensor | None) -> torch.Tensor:
    return logits.float() if offset is None else logits.float() + offset


class _WeightRows:
    """Rows of a head's weight by token id, gathered from all ranks with tensor parallelism."""

    def __init__(self, lm_head: ParallelLMHead):
        self.own, self.is_cut = lm_head.get_parameter("weight").data, lm_head.tp_size > 1
        self.size = len(self.own)
        shard = lm_head.shard_indices
        self._start, self._stop = shard.org_vocab_start_index, shard.org_vocab_end_index

    def take(self, ids: torch.Tensor) -> torch.Tensor:
        """Return a copy of the rows `ids` [n], the same on every rank."""
        if not self.is_cut:
            return self.own[ids]
        is_own = (ids >= self._start) & (ids < self._stop)
        rows = self.own.new_zeros(len(ids), self.own.shape[1])
        rows[is_own] = self.own[ids[is_own] - self._start]
        return tensor_model_parallel_all_reduce(rows)  # exact: one rank contributes the row, all others zeros

    def span(self, ids: range) -> torch.Tensor:
        """Return the rows of consecutive ids, as a view if every rank holds all rows."""
        if not self.is_cut:
            return self.own[ids.start : ids.stop]
        return self.take(torch.arange(ids.start, ids.stop, device=self.own.device))

    def rows(self, ids: list[int]) -> torch.Tensor:
        """Return the rows `ids`, as a view if they are consecutive."""
        if ids and ids == list(range(ids[0], ids[-1] + 1)):
            return self.span(range(ids[0], ids[-1] + 1))
        return self.take(torch.tensor(ids, dtype=torch.int64, device=self.own.device))
