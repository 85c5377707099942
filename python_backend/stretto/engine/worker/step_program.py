"""A step from hidden states to the next rows, as a few launches on buffers with fixed addresses.

The launches are the same for every batch of a variant and number of rows; per-row differences are in device tables.
They can therefore be captured in a CUDA graph (`StepGraphs`), and nothing is uploaded for a step.
"""

from typing import NamedTuple

import torch
import triton

from stretto.engine.kernels.gpu.advance import advance_kernel
from stretto.engine.kernels.gpu.keep import keep_kernel
from stretto.engine.kernels.gpu.step_draw import draw_script_kernel, draw_streams_kernel
from stretto.engine.kernels.gpu.step_text import TILE, WIDTH, draw_text_kernel, text_maxima_kernel
from stretto.engine.request.rules import SegmentRules
from stretto.engine.worker.frame_predictor import Readout
from stretto.engine.worker.slots import SlotTables
from stretto.engine.worker.step_constants import StepConstants
from stretto.engine.worker.step_table import StepTable, Variant
from stretto.streams.segment import Segment

VARIANTS = [Variant(False, True), Variant(True, True), Variant(True, False)]
# Round product and sum separately, as torch does, so that guided logits equal the reference's.
EXACT = {"enable_fp_fusion": False}


class StreamSet(NamedTuple):
    """Streams that may be drawn at once: stream 0, or streams 1 and up, from `first_stream` on.

    Attributes:
        drawn: Drawn ids, int32 [N, S].
        offset: Bias term of the logits, see `StreamHeads`.
        token_ids: Token id of each logit, see `StreamHeads`.
        history: Ids of the first of these streams by slot and position, int32 [R, T, ...].
        first_stream: Number of the first stream.
        num_ends: Number of end ids, in the last columns.
    """

    drawn: torch.Tensor
    offset: torch.Tensor | None
    token_ids: torch.Tensor
    history: torch.Tensor
    first_stream: int
    num_ends: int


class StepProgram:
    """Launches of a step.

    Inputs are `columns`, `hidden` [N, H] and `lengths` [N]; the output is `results`.

    Args:
        readout: Heads and frame predictor.
        rules: Rules of the family.
        tables: Slot tables.
        tokens: vLLM's copy of stream 0 by slot and position, int32 [R, T]; also written here in multi-token steps.
        hidden: Buffer for hidden states.
    """

    def __init__(
        self, readout: Readout, rules: SegmentRules, tables: SlotTables, tokens: torch.Tensor, hidden: torch.Tensor
    ):
        num_rows, device = len(hidden), hidden.device
        heads, self._frames = readout
        self.hidden, self.columns = hidden, StepTable(tables, num_rows)
        self.constants = StepConstants.of(rules, tables, num_rows)
        self._heads, self._tables, self._script = heads, tables, rules.family.script
        self._tokens = tokens if rules.max_rows_per_step > 1 else None
        self.num_rows, self.num_others = num_rows, self.constants.rules.num_others
        speaks = any(Segment.AUDIO in task.segments for task in rules.family.tasks)
        self._num_groups = triton.cdiv(rules.num_text_ids, WIDTH.value)
        writes = self._num_groups > 0
        self.variants = [each for each in VARIANTS if speaks >= each.speaks and writes >= each.writes]

        def int32(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.int32, device=device)

        self.lengths, self.results = int32(num_rows), int32(num_rows * (self.num_others + 3))
        self._text, first = int32(num_rows), int32(num_rows, 1)
        codes = int32(num_rows, len(heads.codes))
        codes += heads.codes[:, :1].sum(1)  # each stream's first code, read for rows without a draw
        num_ends, num_other_ends = rules.num_end_columns
        self._first = StreamSet(first, heads.first_offset, heads.first_ids[None], tokens[..., None], 0, num_ends)
        self._codes = StreamSet(codes, heads.code_offset, heads.codes, tables.codes, 1, num_other_ends)
        self._maxima = torch.zeros(num_rows, self._num_groups, device=device)
        self._lists = int32(num_rows, self._num_groups)
        self._said = tables.said.view(torch.uint8)
        said = self._said if self._said.shape[1] else None
        self._said_in_text, self._said_in_audio = said if writes else None, None if writes else said
        start = rules.family.layout.audio[0].start
        self._num_places = rules.family.rows_per_frame
        self._stay_of_first = self._script.first_frame - start + 1 if self._script else 0

    def launch(self, variant: Variant, num_rows: int) -> None:
        """Launch the step for the first `num_rows` rows of the buffers."""
        hidden = self.hidden[:num_rows]
        if variant.writes:
            self._draw_text(self._heads.raw_text(hidden))
        if variant.speaks:
            self._draw_first(self._heads.raw_first(hidden))
            self._frames(hidden, self._first.drawn[:num_rows, 0], self._draw_codes)
        self._advance(num_rows)

    def _draw_text(self, logits: torch.Tensor) -> None:
        strides = logits.stride(0), self.num_rows, self._tables.state.stride(0)
        sizes = len(self._heads.text_ids), self._num_groups
        text_maxima_kernel[len(logits), triton.cdiv(self._num_groups, TILE.value)](
            logits, self._maxima, self._heads.text_offset, self.constants.denied,
            self._said_in_text, self.columns.table, self._tables.state,
            *strides, *sizes, num_warps=8,
        )  # fmt: skip
        block = triton.next_power_of_2(self._num_groups)
        draw_text_kernel[len(logits),](
            self._text, logits, self._maxima, self._lists, self.columns.table, self.lengths, self._tables.state,
            *strides, *sizes, block, num_warps=8,
        )  # fmt: skip

    def _draw_first(self, logits: torch.Tensor) -> None:
        if self._script is None:
            self._draw(self._first, logits, slice(0, 1))
            return
        num_columns = logits.shape[1]
        draw_script_kernel[len(logits),](
            self._first.drawn, logits, self._first.offset, self.columns.table, self.lengths, self._tables.state,
            self._tables.script, logits.stride(0), self.num_rows, self._tables.state.stride(0),
            self._tables.script.stride(0), self._script.spoken.start, self._stay_of_first, num_columns,
            triton.next_power_of_2(num_columns), **EXACT,
        )  # fmt: skip

    def _draw_codes(self, logits: torch.Tensor, streams: slice) -> torch.Tensor:
        drawn = self._codes.drawn
        lanes = slice(*streams.indices(drawn.shape[1]))
        self._draw(self._codes, logits, lanes)
        return drawn[: len(logits), lanes]

    def _draw(self, streams: StreamSet, logits: torch.Tensor, lanes: slice) -> None:
        """Draw the streams `lanes` of `streams` from `logits` [N, k * C]."""
        drawn, history, first = streams.drawn, streams.history, streams.first_stream
        num_columns = streams.token_ids.shape[1]
        constants, block = self.constants, max(triton.next_power_of_2(num_columns), 128)
        draw_streams_kernel[len(logits), lanes.stop - lanes.start](
            drawn, logits, streams.offset, streams.token_ids, constants.codebooks[:, first:],
            constants.is_guided[first:], self.columns.table, self.lengths, self._tables.state, history,
            None if first else self._said_in_audio, None if first else constants.out_of_place, lanes.start,
            drawn.stride(0), logits.stride(0), constants.codebooks.stride(0), self.num_rows,
            self._tables.state.stride(0), history.stride(0), history.stride(1), self._said.shape[1], num_columns,
            first, block, streams.num_ends, self._num_places, self._frames.reads_drawn,
            num_warps=4 if block <= 1024 else 8 if block <= 4096 else 16, **EXACT,
        )  # fmt: skip

    def _advance(self, num_rows: int) -> None:
        constants, tables = self.constants, self._tables
        # One warp, because lanes of a program read what it overwrites.
        advance_kernel[num_rows,](
            self.results, tables.state, tables.script, tables.codes, self._said, self.columns.table, self.lengths,
            self._text, self._first.drawn, self._codes.drawn, constants.tasks, constants.ends, constants.ends_of_audio,
            constants.end_frame, constants.begins, constants.transition, constants.streams, constants.rules,
            triton.next_power_of_2(max(self.num_others, 2)), num_warps=1,
        )  # fmt: skip
        if self._tokens is not None:
            strides = self._tokens.stride(0), self.num_rows
            keep_kernel[num_rows,](self._tokens, self.results, self.columns.table, self.lengths, *strides, num_warps=1)
