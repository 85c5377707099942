"""Output heads, and predictors of the other streams of a row, of latents, and of a step's additional rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import nn
from vllm.distributed import tensor_model_parallel_all_gather, tensor_model_parallel_all_reduce
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.worker.gpu.block_table import BlockTables
from vllm.v1.worker.gpu.input_batch import InputBatch

from stretto.cpu_backend import products as on_host
from stretto.engine.columns import Array
from stretto.engine.kernels.gpu import products as on_device
from stretto.engine.kernels.gpu.advance import gather_rows
from stretto.engine.kernels.gpu.row_products import BLOCK_INNER, RowProduct
from stretto.engine.reply_rules import SegmentRules
from stretto.engine.step_records import SpeechRequestData
from stretto.engine.worker.batch_plan import SolverPlan
from stretto.engine.worker.slots import Arrays
from stretto.records.prompt import Condition
from stretto.streams.layout import StreamLayout

EVERY = slice(None)  # all of streams 1 to S - 1
Product = Callable[[torch.Tensor], torch.Tensor]


def exact_product(rows: torch.Tensor) -> Product:
    """Return a function that computes `x @ rows.T` in float32 on the device of the constant `rows` [n, H]."""
    return (on_host if rows.device.type == "cpu" else on_device).Float32Product(rows)


def depth_product(rows: torch.Tensor) -> Product:
    """Return the product for a depth transformer's head. On a GPU, a row's bits do not depend on other rows."""
    if rows.device.type == "cpu" or rows.dtype not in BLOCK_INNER:
        return exact_product(rows)
    return RowProduct(rows, dtype=torch.float32)


class StreamHeads:
    """Heads whose weights are rows of the LM head: stream 0 in text, stream 0 in audio, and the other streams.

    If a stream has a bias b on the hidden state h, its logits are W (h + b) = W h + W b; W b is precomputed in float32.
    Results of the methods `raw_…` may be strided.

    Attributes:
        text_ids: Token id of each text logit, [V].
        first_ids: Token id of each logit of stream 0 in audio, [C0 + E]: codes and other audio ids, then end ids.
        codes: Token id of each logit of the other streams, [K, C].
        is_text_cut: True if the text head is split across ranks, which then exchange logits.
    """

    def __init__(self, lm_head: nn.Module, rules: SegmentRules, stream_bias: torch.Tensor | None = None):
        assert isinstance(lm_head, ParallelLMHead)
        family = rules.family
        weight = WeightRows(lm_head)
        first, *others = (rules.audio_ids(stream) for stream in range(family.layout.num_output_streams))
        if len({len(ids) for ids in others}) > 1:
            raise ValueError(f"{family.name}: auxiliary streams must have equally many ids")
        device = weight.shard.device
        self.text_ids = torch.arange(rules.num_text_ids, device=device)
        self.first_ids = torch.tensor([*first, *rules.drawn_ends_of_audio], dtype=torch.int64, device=device)
        size = len(others[0]) if others else 0
        self.codes = torch.tensor(others, dtype=torch.int64, device=device).view(len(others), size)
        self.is_text_cut = weight.is_cut and rules.num_text_ids > weight.size
        text_rows = weight.shard if self.is_text_cut else weight.span(range(rules.num_text_ids))
        first_rows = weight.gather(self.first_ids)
        code_rows = weight.rows([token for ids in others for token in ids])
        self._text: Product = (on_host.Product if device.type == "cpu" else on_device.Float32Product)(text_rows)
        self._first = exact_product(first_rows)
        self._codes = exact_product(code_rows)
        self.text_offset = self.first_offset = self.code_offset = None
        if stream_bias is not None:
            by_stream = code_rows.view(*self.codes.shape, -1)
            self.text_offset = self._gather(_offset(text_rows, stream_bias[0])[None])[0]
            self.first_offset = _offset(first_rows, stream_bias[0])
            pairs = zip(by_stream, stream_bias[1:], strict=True)
            self.code_offset = torch.cat([_offset(rows, bias) for rows, bias in pairs])

    def raw_text(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits of stream 0 in text before the bias is added, [N, H] -> [N, V]."""
        return self._gather(self._text(hidden))

    def raw_first(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits of stream 0 in audio before the bias is added, [N, H] -> float32 [N, C0 + E]."""
        return self._first(hidden)

    def raw_codes(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits of streams 1 to S - 1 before the bias is added, [N, H] -> float32 [N, K * C]."""
        return self._codes(hidden)

    def text(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits of stream 0 in a text segment, [N, H] -> float32 [N, V]."""
        return _shift(self.raw_text(hidden), self.text_offset)

    def first(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits of stream 0 in an audio segment, [N, H] -> float32 [N, C0 + E]."""
        return _shift(self.raw_first(hidden), self.first_offset)

    def shifted(self, logits: torch.Tensor, streams: slice) -> torch.Tensor:
        """Add the bias to the logits of `streams` (a slice of 1 to S - 1), [N, k * C] -> float32 [N, k, C]."""
        num_streams = len(range(len(self.codes))[streams])
        num_codes = self.codes.shape[1]
        offset = self.code_offset
        if offset is not None and streams != EVERY:
            offset = offset.view(self.codes.shape)[streams].reshape(-1)
        return _shift(logits, offset).reshape(len(logits), num_streams, num_codes)

    def _gather(self, logits: torch.Tensor) -> torch.Tensor:
        if not self.is_text_cut:
            return logits
        return tensor_model_parallel_all_gather(logits)[:, : len(self.text_ids)]


class FirstHead(StreamHeads):
    """Head of stream 0 in audio, for models without text that use a depth transformer for the other codebooks.

    Args:
        rows: Weight, [C0 + E, H], replicated on every rank.
    """

    def __init__(self, rows: torch.Tensor, rules: SegmentRules):
        first, *others = (rules.audio_ids(stream) for stream in range(rules.family.layout.num_output_streams))
        self.text_ids = torch.arange(0, device=rows.device)
        self.first_ids = torch.tensor([*first, *rules.drawn_ends_of_audio], dtype=torch.int64, device=rows.device)
        size = len(others[0]) if others else 0
        self.codes = torch.tensor(others, dtype=torch.int64, device=rows.device).view(len(others), size)
        self.is_text_cut = False
        self._first = exact_product(rows[: len(self.first_ids)])
        self.text_offset = self.first_offset = self.code_offset = None


class DepthFirstHead(FirstHead):
    """Head of stream 0 that reads the output of a depth transformer at position 0 (`DepthSpec.num_first`).

    Args:
        rows: Weight, [C0 + E, H of the depth transformer], replicated on every rank.
        start: Function that computes position 0, [N, W] -> [N, H]. `DepthFrames` then computes the following positions.
    """

    def __init__(self, rows: torch.Tensor, rules: SegmentRules, start: Product):
        super().__init__(rows, rules)
        self._first = depth_product(rows[: len(self.first_ids)])
        self._start = start

    def raw_first(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._first(self._start(hidden))


class AudioHeads(FirstHead):
    """Heads of all streams in audio, for models without text that predict all codebooks in parallel.

    Args:
        rows: Weights of all streams, [n, H], replicated on every rank. The end ids of stream 0 follow its codes.
        bias: Biases of the logits, [n], or None.
    """

    def __init__(self, rows: torch.Tensor, rules: SegmentRules, bias: torch.Tensor | None = None):
        super().__init__(rows[: len(rules.audio_ids(0)) + len(rules.drawn_ends_of_audio)], rules)
        self._codes = exact_product(rows[len(self.first_ids) :])
        if bias is not None:
            self.first_offset, self.code_offset = bias.float().tensor_split([len(self.first_ids)])


class StopHead(FirstHead):
    """Head of stream 0 for latents, with two ids: a frame, and a frame in which speech ends.

    Args:
        weight: Weight of the end-of-speech logit, [H], complete on each rank. The logit for continuing is 0.
        bias: Bias of the end-of-speech logit, [1].
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, rules: SegmentRules):
        super().__init__(torch.stack([torch.zeros_like(weight), weight]), rules)
        self.first_offset = torch.cat([torch.zeros_like(bias), bias]).float()


def _offset(rows: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Compute `rows @ bias` for `rows` [n, H] and `bias` [H] in parts, to save memory; float32 [n]."""
    return torch.cat([some.float() @ bias.float() for some in rows.split(8192)])


def _shift(logits: torch.Tensor, offset: torch.Tensor | None) -> torch.Tensor:
    return logits.float() if offset is None else logits.float() + offset


class WeightRows:
    """Weight rows of an LM head or an embedding table by token id, gathered from all ranks if it is split."""

    def __init__(self, lm_head: VocabParallelEmbedding):
        self.shard = lm_head.get_parameter("weight").data
        self.is_cut = lm_head.tp_size > 1
        self.size = len(self.shard)
        shard = lm_head.shard_indices
        self._start = shard.org_vocab_start_index
        self._stop = shard.org_vocab_end_index

    def gather(self, ids: torch.Tensor) -> torch.Tensor:
        """Return a copy of the weight rows of `ids` [n], which is the same on every rank."""
        if not self.is_cut:
            return self.shard[ids]
        is_own = (ids >= self._start) & (ids < self._stop)
        rows = self.shard.new_zeros(len(ids), self.shard.shape[1])
        rows[is_own] = self.shard[ids[is_own] - self._start]
        return tensor_model_parallel_all_reduce(rows)  # exact: one rank contributes each row, all others zeros

    def span(self, ids: range) -> torch.Tensor:
        """Return the weight rows of consecutive ids, as a view if this rank holds the whole weight."""
        if not self.is_cut:
            return self.shard[ids.start : ids.stop]
        return self.gather(torch.arange(ids.start, ids.stop, device=self.shard.device))

    def rows(self, ids: list[int]) -> torch.Tensor:
        """Return the weight rows of `ids`, as a view if possible."""
        if ids and ids == list(range(ids[0], ids[-1] + 1)):
            return self.span(range(ids[0], ids[-1] + 1))
        return self.gather(torch.tensor(ids, dtype=torch.int64, device=self.shard.device))


# (raw float32 logits [N, k * C], may be strided; slice of k of streams 1 to S - 1) -> ids [N, k].
Draw = Callable[[torch.Tensor, slice], torch.Tensor]


class FramePredictor(Protocol):
    """Predictor of streams 1 to S - 1 in audio rows.

    Attributes:
        reads_drawn: True if logits depend on ids already sampled in the same row. Unconditional rows must then use the
            same ids as their conditional rows.
    """

    reads_drawn: bool

    def __call__(self, hidden: torch.Tensor, token: torch.Tensor, draw: Draw) -> torch.Tensor:
        """Return the ids of streams 1 to S - 1, [N, K].

        Both requests of a CFG pair have a row. They use the ids of the conditional row.

        Args:
            token: Ids of stream 0, [N]; with `Family.second_ids`, those of the second text stream as well, [N, 2].
        """
        ...


class ParallelHeads:
    """Predictor that samples all streams in parallel from one hidden state."""

    reads_drawn = False

    def __init__(self, heads: StreamHeads):
        self._heads = heads

    def __call__(self, hidden: torch.Tensor, token: torch.Tensor, draw: Draw) -> torch.Tensor:
        return draw(self._heads.raw_codes(hidden), EVERY)


class DepthNetwork(Protocol):
    """Interface of a depth transformer (see `kernels/gpu/depth.py` for its methods)."""

    heads: torch.Tensor

    def prepare(self, max_rows: int) -> None: ...

    @property
    def begin(self) -> Callable[..., torch.Tensor]: ...  # also takes ids of the second text stream, if it reads one

    def next(self, code: torch.Tensor, position: int) -> torch.Tensor: ...


NO_IDS = range(0)


class DepthFrames:
    """Predictor that samples one stream after another with a depth transformer.

    Args:
        second: Ids of the second text stream that position 0 reads; empty if it reads stream 0 only.
    """

    reads_drawn = True

    def __init__(self, depth: DepthNetwork, layout: StreamLayout, max_rows: int, second: range = NO_IDS):
        self._depth = depth
        self._num_first = len(layout.audio[0])
        self._second = second
        # Difference between an id and its row in the depth transformer's table, which lists one stream after another.
        first_rows = [*accumulate(map(len, layout.audio[:-1]), initial=0)]
        self._shifts = [ids.start - row for ids, row in zip(layout.audio, first_rows, strict=True)]
        self._second_shift = second.start - first_rows[-1]
        self._heads: list[Product] = [depth_product(rows) for rows in depth.heads.data]
        depth.prepare(max_rows)

    def __call__(self, hidden: torch.Tensor, token: torch.Tensor, draw: Draw) -> torch.Tensor:
        token, *others = token.unbind(1) if self._second else (token,)
        code = (token - self._shifts[0]).clamp(0, self._num_first - 1)  # for rows without a code, the result is ignored
        second = [self._rows_of(other) for other in others]
        drawn = [draw(self._heads[0](self._depth.begin(hidden, code, *second)), slice(0, 1))]
        for stream, head in enumerate(self._heads[1:], 1):
            code = drawn[-1][:, 0] - self._shifts[stream]
            drawn.append(draw(head(self._depth.next(code, stream + 1)), slice(stream, stream + 1)))
        return torch.cat(drawn, 1)

    def _rows_of(self, second: torch.Tensor) -> torch.Tensor:
        """Return the table rows [N] of ids of the second text stream, or -1 for other ids."""
        is_read = (second >= self._second.start) & (second < self._second.stop)
        return torch.where(is_read, second - self._second_shift, -1)


class Readout(NamedTuple):
    """Output heads and frame predictor of a model, together with the model, for samplers of families."""

    heads: StreamHeads
    frames: FramePredictor
    model: Any = None


class LatentPredictor(Protocol):
    """Predictor of the latents of audio rows. A row's latent is bit-identical in every batch."""

    def __call__(
        self, hidden: torch.Tensor, noise: torch.Tensor, steps: torch.Tensor, plan: SolverPlan
    ) -> torch.Tensor:
        """Return the latents, float32 [N, D].

        The kernel launches depend only on `plan` and N, so that they can be captured in a CUDA graph.

        Args:
            noise: Gaussian noise with which the solver begins, float32 [N, D], scaled by the temperature.
            steps: Number of solver steps of each row, int64 [N], from 1 to `plan.num_steps`.
        """
        ...


class GuidedLatentPredictor(Protocol):
    """Latent predictor with guidance within the row (`Family.guides_rows`) or by a CFG pair."""

    def __call__(
        self,
        hidden: torch.Tensor,
        noise: torch.Tensor,
        steps: torch.Tensor,
        plan: SolverPlan,
        other: torch.Tensor,
        guidance: torch.Tensor,
    ) -> torch.Tensor:
        """Return the latents, float32 [N, D] (see `LatentPredictor` for the other arguments).

        Args:
            other: With `Family.guides_rows`, latents of the previous rows, float32 [N, D], or zeros for rows without
                one. With CFG pairs, hidden states of the unconditional requests, [N, H]; unused for unguided rows.
            guidance: Guidance scales, float32 [N]; 1 is unguided.
        """
        ...


@dataclass(frozen=True)
class LatentReadout:
    """Output head and latent predictor of a family's model."""

    heads: FirstHead
    latents: LatentPredictor | GuidedLatentPredictor
    width: int


AnyReadout = Readout | LatentReadout


class RequestMemory(Protocol):
    """State that a plug-in's network keeps per request: the attribute `memory` of the plug-in's sampler."""

    def fill_slot(self, slot: int, data: SpeechRequestData) -> None:
        """Prepare the state of a request that begins or continues in `slot`."""

    def put_aside(self, request_id: str, slot: int) -> None:
        """Save the state of a request that leaves its slot, because a preempted request will need it again."""


class ConditionNetwork(Protocol):
    """Network that turns a request's condition into vectors, and keeps these by slot (`RequestConditions`).

    All tables have fixed addresses, as CUDA graphs require.
    """

    def prepare(self, layers: Sequence[nn.Module], num_slots: int, max_rows: int, dtype: torch.dtype) -> None:
        """Allocate the tables."""

    def fill_slot(self, slot: int, condition: Condition | None, arrays: Arrays) -> None:
        """Store the condition of the request in `slot`."""

    def fill(self, slots: torch.Tensor, rows: torch.Tensor) -> None:
        """Record the slots, int [N], and the ids of all streams, [at least N, S], of the rows of a step."""

    def add_to(self, embeds: torch.Tensor) -> torch.Tensor:
        """Add the vector of each row's request to the embeddings [N, H], in place, and return them."""


# (hidden states [B, H], index of the row in the step) -> None; samples and records the row.
SampleRow = Callable[[torch.Tensor, int], None]


@dataclass(frozen=True)
class BurstBatch:
    """Batch of a step that may generate several rows per request.

    Attributes:
        num_read: Number of computed rows of each request after this step, which is the index of its first generated
            row, int64 [B].
        num_extra: Number of rows that the modules generate after the first one, int64 [B].
        is_read: True if the MTP modules also process the request's rows, bool [B].
    """

    batch: InputBatch
    num_read: np.ndarray
    num_extra: np.ndarray
    is_read: np.ndarray


class RowPredictor(Protocol):
    """Predictor of the rows that a step generates after the first one."""

    def bind(self, kv_cache_config: KVCacheConfig, block_tables: BlockTables) -> None:
        """Use the allocated KV cache."""
        ...

    def capture(self) -> None:
        """Capture graphs, before the first request."""
        ...

    def fill_slot(self, slot: int, num_read: int) -> None:
        """Record that `slot` has received a request whose first `num_read` rows are in the prefix cache."""
        ...

    def __call__(self, hidden: torch.Tensor, step: BurstBatch, sample_row: SampleRow) -> None:
        """Generate the rows after the first one, which was sampled from `hidden` [B, H].

        This is called in every step, even if no request generates more rows, because the modules must process prompts.
        """
        ...


class GeneratedRows:
    """Rows generated so far, from which `embed` computes embeddings.

    Args:
        tokens: Stream 0 of every slot by position, int32 [R, T].
        codes: The other streams by slot and position, int32 [R, T + 1, S - 1].
    """

    def __init__(self, model: Any, tokens: torch.Tensor, codes: torch.Tensor, arrays: Arrays, pad_id: int):
        self.arrays = arrays
        self._model = model
        self._pad_id = pad_id
        self._tokens = arrays.wrap(tokens)
        self._codes = codes
        self._table = model.get_submodule("model.embed_tokens").get_parameter("weight")

    def embed(self, slots: Array, positions: Array) -> torch.Tensor:
        """Return the embeddings of rows, [N, H] (undefined for rows not yet generated)."""
        rows = self._codes.new_empty(len(slots), 1 + self._codes.shape[2])
        positions = self.arrays.xp.clip(positions, 0, self._tokens.shape[1] - 1)
        gather_rows(rows, self._tokens[slots, positions], slots, positions, self._codes, self._pad_id)
        return self._model.embed_rows(rows, self._table.new_empty(len(slots), self._table.shape[1]))
