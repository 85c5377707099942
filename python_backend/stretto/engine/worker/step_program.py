"""Sampling on a GPU, from hidden states to rows, in a few kernel launches that CUDA graphs replay."""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import triton
from vllm.v1.outputs import LogprobsTensors
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.sample.output import SamplerOutput
from vllm.v1.worker.gpu.sample.sampler import Sampler

from stretto.engine.columns import COLUMNS, LIMITS, SCALES
from stretto.engine.kernels.gpu.advance import (
    ROW_FUNCTIONS,
    RowFunctions,
    advance_kernel,
    attempt_keys_kernel,
    keep_kernel,
)
from stretto.engine.kernels.gpu.step_draw import (
    DRAWS,
    RECEIVES,
    SAMPLING_FUNCTIONS,
    SamplingFunctions,
    StepRules,
    draw_streams_kernel,
)
from stretto.engine.kernels.gpu.step_text import TILE, WIDTH, draw_text_kernel, text_maxima_kernel
from stretto.engine.reply_rules import SegmentRules
from stretto.engine.worker.batch_plan import NO_LATENTS, NO_ROW, SolverPlan, StepRows
from stretto.engine.worker.bursts import BurstSampler
from stretto.engine.worker.predictors import AnyReadout, Readout, RequestMemory
from stretto.engine.worker.run_slots import RunSlots
from stretto.engine.worker.segment_state import denied_text, end_tables, out_of_place
from stretto.engine.worker.slots import SlotTables
from stretto.engine.worker.step_graphs import StepGraphs
from stretto.records.sampling import MAX_REDRAWS
from stretto.streams.layout import Segment


@dataclass(frozen=True)
class StepConstants:
    """Kernel constants on the device (see `advance_kernel` and `draw_streams_kernel` for the tables)."""

    rules: StepRules
    tasks: torch.Tensor
    ends: torch.Tensor
    ends_of_audio: torch.Tensor
    end_frame: torch.Tensor
    transition: torch.Tensor
    streams: torch.Tensor
    sent: torch.Tensor
    denied: torch.Tensor
    is_guided: torch.Tensor
    codebooks: torch.Tensor
    out_of_place: torch.Tensor | None

    @classmethod
    def from_rules(cls, rules: SegmentRules, tables: SlotTables, num_rows: int) -> "StepConstants":
        """Build and upload the constants."""
        family = rules.family
        layout = rules.family.layout
        ends = end_tables(rules)
        cut = [rules.cut_of_text(task) for task in family.tasks]
        limits = [rules.text_limit(task) for task in family.tasks]
        speaks = [Segment.AUDIO in task.segments for task in family.tasks]
        codebooks = [layout.audio[s] if s in layout.codebook_streams else range(0) for s in range(len(layout.audio))]

        def upload(values: object) -> torch.Tensor:
            return torch.as_tensor(np.array(values, np.int64)).to(tables.state.device)

        return cls(
            rules=step_rules_of(rules, tables, num_rows, ends.shape[2]),
            tasks=upload([cut, limits, speaks]),
            ends=upload(ends),
            ends_of_audio=upload(rules.written_ends_of_audio),
            end_frame=upload(family.end_frame),
            transition=upload([*family.transition, layout.pad_id]),
            streams=upload(rules.other_streams),
            sent=upload(tables.sent_columns),
            denied=torch.from_numpy(denied_text(rules)).to(tables.state.device),
            is_guided=upload([stream in family.guided_streams for stream in range(len(layout.audio))]),
            codebooks=upload([[ids.start for ids in codebooks], [ids.stop for ids in codebooks]]),
            out_of_place=upload(out_of_place(rules)).to(torch.uint8) if layout.frame_codec.places else None,
        )


def step_rules_of(rules: SegmentRules, tables: SlotTables, num_rows: int, num_ids: int) -> StepRules:
    """Return the compile-time constants of the kernels; `num_ids` is the number of columns of `end_tables`."""
    family = rules.family
    layout = rules.family.layout
    track_streams = family.track_streams
    return StepRules(
        family=rules.constants,
        num_rows=num_rows,
        num_others=layout.num_input_streams - 1,
        num_drawn=layout.num_output_streams - 1,
        num_sent=len(rules.sent_state),
        num_tasks=len(family.tasks),
        num_ids=num_ids,
        num_ends=len(rules.written_ends_of_audio),
        num_end_frame=len(family.end_frame),
        num_transition=len(family.transition),
        state_stride=tables.state.stride(0),
        texts_stride=tables.texts.stride(0),
        codes_stride=tables.codes.stride(0),
        num_seen_columns=tables.seen.shape[1],
        first_seen_id=rules.counted_ids.start,
        track_start=track_streams.start - 1,
        track_stop=track_streams.stop - 1,
    )


AT = {name: index for index, name in enumerate(COLUMNS)}
FIRST_LIMIT = AT["task"]
FIRST_SCALE = AT["text_temperature"]


@dataclass(frozen=True)
class Variant:
    """Heads that a step needs: for rows that may be in a text segment (`writes`), or after it (`speaks`)."""

    writes: bool
    speaks: bool
    solver: SolverPlan = NO_LATENTS


def columns_of(
    rows: StepRows, partner: np.ndarray, is_unconditional: np.ndarray, tables: SlotTables, num_rows: int
) -> np.ndarray:
    """Return the step table of a batch with the columns `COLUMNS`, padded to `num_rows`, int32 [C, N]."""
    slots = rows.slots
    batch = np.arange(len(rows.slots))
    columns = np.zeros((len(COLUMNS), num_rows), np.int32)
    mine = columns[:, : len(slots)]
    row_of = np.full(len(partner) + 1, NO_ROW)  # the last entry is for slots without a partner
    row_of[slots[rows.samples]] = batch[rows.samples]
    draws = rows.samples & ~is_unconditional[slots]
    other = row_of[partner[slots]]
    is_paired = draws & (other != NO_ROW)
    mine[AT["role"], draws] = DRAWS.value
    mine[AT["role"], other[is_paired]] = RECEIVES.value
    mine[AT["slot"]] = slots
    mine[AT["other"]] = np.where(is_paired, other, batch)
    mine[AT["other_slot"]] = slots[mine[AT["other"]]]
    mine[AT["samples"]] = rows.samples
    mine[FIRST_LIMIT : FIRST_LIMIT + len(LIMITS)] = tables.limits[slots].T
    mine[AT["request_key"]] = mine[AT["seed_key"]]
    mine[FIRST_SCALE : FIRST_SCALE + len(SCALES)] = np.ascontiguousarray(tables.scales[slots].T).view(np.int32)
    return columns


class StepTable:
    """Step table on the device. It is uploaded only when the batch changes."""

    def __init__(self, tables: SlotTables, num_rows: int):
        device = tables.state.device
        self.table = torch.zeros(len(COLUMNS), num_rows, dtype=torch.int32, device=device)
        self.num_uploads = 0
        self._tables = tables
        self._is_pinning = device.type == "cuda"
        self._fingerprint: tuple[int, bytes, bytes] | None = None
        self._draws = np.zeros(0, np.bool_)
        self._solver = NO_LATENTS

    def clear(self) -> None:
        """Mark all rows as inactive."""
        self.table.zero_()
        self._fingerprint = None

    def update(self, rows: StepRows, partner: np.ndarray, is_unconditional: np.ndarray, version: int) -> Variant:
        """Update the table if the batch has changed, and return the heads that the step needs."""
        fingerprint = version, rows.slots.tobytes(), rows.samples.tobytes()
        if fingerprint != self._fingerprint:
            columns = columns_of(rows, partner, is_unconditional, self._tables, self.table.shape[1])
            self._upload(columns)
            self._draws = columns[AT["role"], : len(rows.slots)] == DRAWS.value
            slots = rows.slots[self._draws]
            self._solver = SolverPlan.of_rows(self._tables.limits[slots], self._tables.scales[slots])
            self._fingerprint = fingerprint
        if not (rows.may_write & self._draws).any():
            return Variant(False, bool(self._draws.any()), self._solver)
        return Variant(True, bool((rows.may_speak & self._draws).any()), self._solver)

    def _upload(self, columns: np.ndarray) -> None:
        source = torch.from_numpy(columns)
        self.table.copy_(source.pin_memory() if self._is_pinning else source, non_blocking=True)
        self.num_uploads += 1


VARIANTS = [Variant(False, True), Variant(True, True), Variant(True, False)]
# Round product and sum separately, as torch does, so that guided logits equal the reference.
EXACT = {"enable_fp_fusion": False}


class StreamSet(NamedTuple):
    """Streams that one kernel launch may sample: stream 0, or streams 1 to S - 1.

    Attributes:
        drawn: Sampled ids, int32 [N, number of streams].
        offset, token_ids: Bias term and token id of each logit, see `StreamHeads`.
        history: Ids by slot and position, int32 [R, T, ...], beginning with the first of these streams.
        num_ends: Number of end ids, which are the last columns.
    """

    drawn: torch.Tensor
    offset: torch.Tensor | None
    token_ids: torch.Tensor
    history: torch.Tensor
    first_stream: int
    num_ends: int


class StepProgram:
    """Kernel launches that sample a step, from the buffers `columns`, `hidden` and `lengths` [N] to `results`.

    A family's program (`DrawRules.step_program`) is a subclass that overrides hooks or names other Triton functions.
    Methods of its CPU sampler (`RowDraw`) have the same names.

    Args:
        tokens: vLLM's copy of stream 0 by slot and position, int32 [R, T]; multi-token steps also write it.
        hidden: Buffer for hidden states, [N, H].

    Attributes:
        frames: Frame predictor; None with latents.
        seconds: Ids of the second text stream, int32 [N]; None if the family has none.
        sampling_functions, other_functions: Triton functions that sample stream 0 in audio, and the other streams.
        row_functions: Triton functions that `advance_kernel` calls in each row.
        rule_constants: Numbers of a family for all these functions, as a named tuple; 0 for none.
    """

    memory: RequestMemory | None = None
    sampling_functions: ClassVar[SamplingFunctions] = SAMPLING_FUNCTIONS
    other_functions: ClassVar[SamplingFunctions] = SAMPLING_FUNCTIONS
    row_functions: ClassVar[RowFunctions] = ROW_FUNCTIONS
    rule_constants: Any = 0

    def __init__(
        self, readout: AnyReadout, rules: SegmentRules, tables: SlotTables, tokens: torch.Tensor, hidden: torch.Tensor
    ):
        num_rows = len(hidden)
        device = hidden.device
        heads = readout.heads
        self.frames: Any = readout.frames if isinstance(readout, Readout) else None
        self.hidden = hidden
        self.columns = StepTable(tables, num_rows)
        self.constants = StepConstants.from_rules(rules, tables, num_rows)
        self.heads = heads
        self.tables = tables
        self._tokens = tokens if rules.max_rows_per_step > 1 else None
        self.num_rows = num_rows
        self.width = self.constants.rules.num_others + self.constants.rules.num_sent
        speaks = any(Segment.AUDIO in task.segments for task in rules.family.tasks)
        self._num_groups = triton.cdiv(rules.num_text_ids, WIDTH.value)
        writes = self._num_groups > 0
        self.variants = [variant for variant in VARIANTS if speaks >= variant.speaks and writes >= variant.writes]

        def int32(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.int32, device=device)

        self.lengths = int32(num_rows)
        self.results = int32(num_rows * (self.width + 3))
        self._text = int32(num_rows)
        first = int32(num_rows, 1)
        codes = int32(num_rows, len(heads.codes))
        codes += heads.codes[:, :1].sum(1)  # each stream's first code, read for rows that are not sampled
        num_ends, num_other_ends = rules.num_end_columns
        self.first = StreamSet(first, heads.first_offset, heads.first_ids[None], tokens[..., None], 0, num_ends)
        self.others = StreamSet(codes, heads.code_offset, heads.codes, tables.codes, 1, num_other_ends)
        self._maxima = torch.zeros(num_rows, self._num_groups, device=device)
        self._lists = int32(num_rows, self._num_groups)
        self._seen = tables.seen.view(torch.uint8)
        seen = self._seen if self._seen.shape[1] else None
        self._seen_in_text = seen if writes else None
        self._seen_in_audio = None if writes else seen
        self._num_places = rules.family.rows_per_frame
        self.seconds = int32(num_rows) if rules.family.second_ids else None

    def can_capture(self, variant: Variant) -> bool:
        """Return True if `variant` is one of `variants`, and needs no exchange of text logits between ranks."""
        return variant in self.variants and not (variant.writes and self.heads.is_text_cut)

    def launch(self, variant: Variant, num_rows: int) -> None:
        """Launch the kernels for the first `num_rows` rows of the buffers."""
        hidden = self.hidden[:num_rows]
        attempt_keys_kernel[num_rows,](
            self.columns.table, self.lengths, self.tables.state, MAX_REDRAWS, self.constants.rules, num_warps=1
        )
        if variant.writes:
            self._draw_text(self.heads.raw_text(hidden))
        if variant.speaks:
            self.draw_first(self.heads.raw_first(hidden))
            self.replace_first(num_rows)
            self.draw_others(hidden, variant)
            self.replace_streams(num_rows)
        self._advance(num_rows)

    def _draw_text(self, logits: torch.Tensor) -> None:
        strides = logits.stride(0), self.num_rows, self.tables.state.stride(0)
        sizes = len(self.heads.text_ids), self._num_groups
        text_maxima_kernel[len(logits), triton.cdiv(self._num_groups, TILE.value)](
            logits, self._maxima, self.heads.text_offset, self.constants.denied,
            self._seen_in_text, self.columns.table, self.tables.state,
            *strides, *sizes, num_warps=8,
        )  # fmt: skip
        block = triton.next_power_of_2(self._num_groups)
        draw_text_kernel[len(logits),](
            self._text, logits, self._maxima, self._lists, self.columns.table, self.lengths, self.tables.state,
            *strides, *sizes, block, num_warps=8,
        )  # fmt: skip

    def draw_first(self, logits: torch.Tensor) -> None:
        """Sample stream 0 of audio rows from their logits, [N, C] (a hook)."""
        self._draw(self.first, logits, slice(0, 1))

    def replace_first(self, num_rows: int) -> None:
        """Replace stream 0 of audio rows in `first`, before their other streams are sampled (a hook)."""

    def replace_streams(self, num_rows: int) -> None:
        """Replace ids of audio rows in `first` and `others`, once all are sampled (a hook)."""

    def draw_others(self, hidden: torch.Tensor, variant: Variant) -> None:
        """Sample the other streams of audio rows from their hidden states, [N, H] (a hook)."""
        num_rows = len(hidden)
        first = self.first.drawn[:num_rows, 0]
        if self.seconds is not None:
            first = torch.stack([first, self.seconds[:num_rows]], 1)
        self.frames(hidden, first, self._draw_codes)

    def _draw_codes(self, logits: torch.Tensor, streams: slice) -> torch.Tensor:
        drawn = self.others.drawn
        lanes = slice(*streams.indices(drawn.shape[1]))
        self._draw(self.others, logits, lanes)
        return drawn[: len(logits), lanes]

    def _draw(self, streams: StreamSet, logits: torch.Tensor, lanes: slice) -> None:
        """Sample the streams `lanes` of a set from their logits, [N, k * C]."""
        drawn = streams.drawn
        history = streams.history
        first = streams.first_stream
        num_columns = streams.token_ids.shape[1]
        constants = self.constants
        block = max(triton.next_power_of_2(num_columns), 128)
        draw_streams_kernel[len(logits), lanes.stop - lanes.start](
            drawn, logits, streams.offset, streams.token_ids, constants.codebooks[:, first:],
            constants.is_guided[first:], self.columns.table, self.lengths, self.tables.state, history,
            None if first else self._seen_in_audio, None if first else constants.out_of_place, lanes.start,
            drawn.stride(0), logits.stride(0), constants.codebooks.stride(0), self.num_rows,
            self.tables.state.stride(0), history.stride(0), history.stride(1), self._seen.shape[1], num_columns,
            first, block, streams.num_ends, self._num_places, self.frames is not None and self.frames.reads_drawn,
            self.frames is None, self.rule_constants, *(self.other_functions if first else self.sampling_functions),
            num_warps=num_warps(block), **EXACT,
        )  # fmt: skip

    def _advance(self, num_rows: int) -> None:
        constants = self.constants
        tables = self.tables
        # One warp, because lanes of a program read what it overwrites.
        advance_kernel[num_rows,](
            self.results, tables.state, tables.texts, tables.codes, self._seen, self.columns.table, self.lengths,
            self._text, self.first.drawn, self.others.drawn, constants.tasks, constants.ends, constants.ends_of_audio,
            constants.end_frame, constants.transition, constants.streams, constants.sent, constants.rules,
            self.rule_constants, *self.row_functions, triton.next_power_of_2(max(self.width, 2)), num_warps=1,
        )  # fmt: skip
        if self._tokens is not None:
            strides = self._tokens.stride(0), self.num_rows
            keep_kernel[num_rows,](self._tokens, self.results, self.columns.table, self.lengths, *strides, num_warps=1)


def num_warps(block: int) -> int:
    """Return the number of warps for a program that samples from `block` columns."""
    if block <= 1024:
        return 4
    return 8 if block <= 4096 else 16


class StepSampler:
    """Sampler of the rows (all streams) of a step, like `SpeechSampler`, but with few kernel launches for each row.

    Attributes:
        drawn: Ids of stream 0 that the last step with one row per request has sampled, [B, 1].
    """

    drawn: torch.Tensor

    def __init__(
        self,
        stock: Sampler,
        slots: RunSlots,
        program: StepProgram,
        graphs: StepGraphs[Variant],
        bursts: BurstSampler | None = None,
    ):
        self._bursts = bursts
        self.penalties_state = stock.penalties_state
        self.compute_nans = False
        self._slots = slots
        self._program = program
        self._graphs = graphs
        device = program.results.device
        self._nothing = torch.zeros(program.num_rows, 1, device=device)
        self._none = torch.zeros(program.num_rows, dtype=torch.int32, device=device)

    def add_request(self, req_idx: int, sampling_params: object) -> None:
        """Ignore vLLM's sampling parameters: ours are in the slot tables."""

    def apply_staged_writes(self) -> None:
        """Do nothing: `SpeechModelState` uploads the slot tables."""

    def capture(self) -> None:
        """Capture all variants at all sizes before the first request."""
        self._program.columns.clear()
        self._graphs.capture(self._program.variants)

    def __call__(self, hidden: torch.Tensor, batch: InputBatch) -> SamplerOutput:
        """Sample the rows of each request of `batch` from its last hidden state in `hidden` [B, H]."""
        num_rows = batch.num_reqs
        lengths = batch.seq_lens[:num_rows]
        if self._bursts is None:
            self._run(hidden, lengths, self._slots.rows(batch))
            return self._output(num_rows)

        def draw_row(states: torch.Tensor, next_rows: StepRows, row_index: int) -> tuple[torch.Tensor, ...]:
            self._run(states, lengths + row_index if row_index else lengths, next_rows)
            return self._results(self._program.results, num_rows)[:3]

        return self._bursts.sample(hidden, batch, draw_row)

    def _run(self, hidden: torch.Tensor, lengths: torch.Tensor, rows: StepRows) -> None:
        """Run a step for rows at the positions `lengths`, [B]."""
        slots = self._slots
        program = self._program
        num_rows = len(rows.slots)
        variant = program.columns.update(rows, slots.partner, slots.is_unconditional, slots.version)
        program.hidden[:num_rows].copy_(hidden)
        program.lengths[:num_rows].copy_(lengths)
        self._graphs.run(variant, num_rows)

    def _results(self, results: torch.Tensor, num_rows: int) -> tuple[torch.Tensor, ...]:
        """Split `results` into stream 0 [B], other streams and state [B, S - 1 + C], cut flags [B] and sampled [B]."""
        size = self._program.num_rows
        width = self._program.width
        codes = results[size : size + num_rows * width].view(num_rows, width)
        cuts, sampled = (results[size * (width + at) :][:num_rows] for at in (1, 2))
        return results[:num_rows], codes, cuts, sampled

    def _output(self, num_rows: int) -> SamplerOutput:
        """Return a copy of the results, because the next step overwrites them while vLLM is still transferring them."""
        tokens, codes, cuts, sampled = self._results(self._program.results.clone(), num_rows)
        self.drawn = tokens[:, None]
        return SamplerOutput(
            sampled_token_ids=self.drawn,
            # Codes, state and cut flags are sent in vLLM's asynchronous copy of log-probabilities.
            logprobs_tensors=LogprobsTensors(codes, self._nothing[:num_rows], cuts),
            num_nans=None,
            num_sampled=sampled,
            num_rejected=self._none[:num_rows],
        )
