"""The rows of `lm_head` that each stream needs, and no others.

With tensor parallelism every rank draws every row (the noise is a function of seed, position, stream and id, so all
ranks draw the same), and a head is either whole on each rank or cut by vocabulary:

- The audio heads are whole. A step needs 1 + 8 × 1025 rows of 4096 bf16 numbers, 67 MB, of a published model; cut in
  two they would save 34 MB and 7 µs of memory traffic at 4.8 TB/s, and cost a gather of logits in every step, which
  takes longer than that.
- The text head is vLLM's own shard where it is larger than a shard (152,192 rows, 1.25 GB); its logits are gathered.

Logits of audio are float32 sums of the weight's products, so that guidance does not amplify what would be rounded away;
on a GPU those of text are, too. On the CPU the text head, which is not guided, is not copied for it.
"""

from collections.abc import Callable

import torch
from torch import nn
from vllm.distributed import tensor_model_parallel_all_gather, tensor_model_parallel_all_reduce
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

from stretto.engine.kernels.cpu import products as on_host
from stretto.engine.kernels.gpu import products as on_device
from stretto.engine.request.rules import SegmentRules

EVERY = slice(None)  # all of the streams 1 ...
Product = Callable[[torch.Tensor], torch.Tensor]


def exact_product(rows: torch.Tensor) -> Product:
    """`x @ rows.T` in float32 for a weight that stays as it is, on its device."""
    return (on_host if rows.device.type == "cpu" else on_device).Float32Product(rows)


class StreamHeads:
    """Three heads over one weight: stream 0 in text, stream 0 in audio, and the auxiliary streams, each over its ids.

    text_ids [V], first_ids [C0 + E] (what it may carry in audio, then what ends that) and codes [K, C] say which token
    id each logit stands for. Where a stream has a bias b, its logits are W (h + b) = W h + W b, the second term fp32.
    is_text_cut: whether ranks exchange logits of text.
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
        """`text` without what a bias adds: its lines may lie apart."""
        return self._gather(self._text(hidden))

    def raw_first(self, hidden: torch.Tensor) -> torch.Tensor:
        """`first` without what a bias adds: its lines may lie apart."""
        return self._first(hidden)

    def raw_codes(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits of the streams 1 ... in an audio segment, [N, H] -> [N, K * C] float32, without what a bias adds."""
        return self._codes(hidden)

    def text(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits of stream 0 in a text segment: [N, H] -> [N, V] float32."""
        return _shift(self.raw_text(hidden), self.text_offset)

    def first(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits of stream 0 in an audio segment: [N, H] -> [N, C0 + E] float32."""
        return _shift(self.raw_first(hidden), self.first_offset)

    def shifted(self, logits: torch.Tensor, streams: slice) -> torch.Tensor:
        """Raw logits of `streams` of the streams 1 ... with what a bias adds: [N, k * C] -> [N, k, C] float32."""
        num_streams, num_codes = len(range(len(self.codes))[streams]), self.codes.shape[1]
        offset = self.code_offset
        if offset is not None and streams != EVERY:
            offset = offset.view(self.codes.shape)[streams].reshape(-1)
        return _shift(logits, offset).reshape(len(logits), num_streams, num_codes)

    def _gather(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits over all text ids from what this rank has of them, which is all where the head is whole."""
        if not self.is_text_cut:
            return logits
        return tensor_model_parallel_all_gather(logits)[:, : len(self.text_ids)]


class FirstHead(StreamHeads):
    """The one head of a family without text whose frames a depth transformer completes: stream 0 in audio.

    rows [C0 + E, H]: whole on each rank.
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
    """The heads of a family without text whose streams are drawn at once: of each stream in audio, one behind another,
    what stream 0 ends with behind its own.

    rows [n, H]: whole on each rank.
    """

    def __init__(self, rows: torch.Tensor, rules: SegmentRules):
        super().__init__(rows[: len(rules.audio_ids(0)) + len(rules.drawn_ends_of_audio)], rules)
        self._codes = exact_product(rows[len(self.first_ids) :])


def _offset(rows: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """What a bias [H] of the hidden state adds to the logits: rows [n, H] -> [n] float32, few rows at a time."""
    return torch.cat([some.float() @ bias.float() for some in rows.split(8192)])


def _shift(logits: torch.Tensor, offset: torch.Tensor | None) -> torch.Tensor:
    return logits.float() if offset is None else logits.float() + offset


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

    def rows(self, ids: list[int]) -> torch.Tensor:
        """The rows of `ids`: a view where they follow each other, else a copy."""
        if ids and ids == list(range(ids[0], ids[-1] + 1)):
            return self.span(range(ids[0], ids[-1] + 1))
        return self.take(torch.tensor(ids, dtype=torch.int64, device=self.own.device))
