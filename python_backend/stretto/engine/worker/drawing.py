"""Draw of one id per stream from hidden states: heads, guidance, masks, draw. Nothing waits for the device."""

import numpy as np
import torch

from stretto.engine.kernels.gpu.draw import draw
from stretto.engine.worker.arrays import Array, Arrays
from stretto.engine.worker.batch import BatchPlan, PlanArrays
from stretto.engine.worker.frame_predictor import Readout
from stretto.engine.worker.heads import EVERY
from stretto.engine.worker.repetition import RecentRows, RepetitionGuard
from stretto.engine.worker.segment_state import Rows, SegmentState
from stretto.engine.worker.slots import SlotTables, counted_columns
from stretto.engine.worker.stairs import Stairs
from stretto.sampling.guidance import guide
from stretto.sampling.min_p import keep_near
from stretto.sampling.noise import stream_keys, uniform
from stretto.sampling.repetition import penalize
from stretto.sampling.script import advances


class RowDraw:
    """Draw of the conditional rows of a batch; guided rows use their partner's logits."""

    def __init__(
        self, readout: Readout, segments: SegmentState, tables: SlotTables, arrays: Arrays, guard: RepetitionGuard
    ):
        self._heads, self._frames = readout
        self._segments, self._arrays, self._guard = segments, arrays, guard
        self._script, self._codes = arrays.of(tables.script), arrays.of(tables.codes)
        self._said = arrays.of(tables.said) if segments.family.penalized else None
        family = segments.family
        self._track_stream = family.track_stream
        self._stairs = Stairs(family.staircase, segments.rules, arrays) if family.staircase else None
        self._num_streams = family.layout.num_output_streams
        self._guided = np.array([stream in family.guided_streams for stream in range(1, self._num_streams)], np.bool_)
        self._guides_first = 0 in family.guided_streams

    def keys(self, seed_keys: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Return the noise keys, int32 [M, S], for seed keys and positions, int32 [M] each."""
        return stream_keys(seed_keys, positions, self._num_streams)

    def __call__(
        self, hidden: torch.Tensor, keys: np.ndarray, plan: BatchPlan, step: PlanArrays, rows: Rows
    ) -> tuple[Array, Array]:
        """Return stream 0 [M] and streams 1 and up [M, S - 1] of the drawing rows.

        Args:
            hidden: Hidden states of all rows, [B, H].
            keys: Noise keys, int32 [M, S].
            plan: Plan of the step.
            step: Arrays of the plan.
            rows: State of the drawing rows, which is advanced.
        """
        text = audio = codes = None
        if plan.may_write:
            text = self._draw_text(hidden, _pick(keys, plan.writing), plan, step, rows)
        if plan.may_speak:
            audio, codes = self._draw_audio(hidden, _pick(keys, plan.speaking), plan, step, rows)
        token = self._segments.choose(text, audio, rows)
        if self._said is not None:
            self._said[rows.slots, counted_columns(token, self._segments.rules.counted_ids)] = True
        there = self._codes[rows.slots, rows.position] if plan.has_delayed_tail or self._track_stream else None
        laid = self._segments.place_codes(codes, token, rows, there if plan.has_delayed_tail else None)
        if self._track_stream is not None and there is not None:
            laid[:, self._track_stream - 1] = there[:, self._track_stream - 1]
        return token, laid

    def _spread(self, drawn: torch.Tensor, index: Array | None, rows: Rows) -> Array:
        """Return the values drawn by the rows `index`, placed among all rows."""
        values = self._arrays.of(drawn)
        if index is None:
            return values
        spread = self._arrays.zeros(len(rows.position), *drawn.shape[1:])
        spread[index] = values
        return spread

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        return self._arrays.tensor(self._arrays.upload(values))

    def _draw_text(
        self, hidden: torch.Tensor, keys: np.ndarray, plan: BatchPlan, step: PlanArrays, rows: Rows
    ) -> Array:
        """Return stream 0 of the rows that may be in a text segment."""
        own = hidden if step.written is None else hidden[step.written]
        logits = self._heads.text(own)
        if self._said is not None:
            logits = self._penalized(logits, rows, step.writing)
        logits = self._segments.mask_text(logits, rows, step.writing)
        token = draw(logits[:, None], self._heads.text_ids[None], self._tensor(keys[:, :1]), step.text, plan.text)
        return self._segments.end_text(self._spread(token.squeeze(1), step.writing, rows), rows)

    def _draw_audio(
        self, hidden: torch.Tensor, keys: np.ndarray, plan: BatchPlan, step: PlanArrays, rows: Rows
    ) -> tuple[Array, Array]:
        """Return stream 0 [M] and streams 1 and up [M, K] of the rows that may be in audio."""
        heard = hidden if step.heard is None else hidden[step.heard]
        num_rows, num_shared = len(keys), len(step.guidance) if self._frames.reads_drawn else 0
        recent = self._guard.recent(rows, step.speaking, plan.ras_window) if plan.ras_window else None
        first = self._first_logits(heard, num_rows, step.guidance)
        token = self._draw_first(first, keys[:, :1], plan, step, rows, recent)
        code_keys = self._tensor(keys[:, 1:])

        def draw_codes(logits: torch.Tensor, streams: slice) -> torch.Tensor:
            guided = self._guided_codes(self._heads.shifted(logits, streams), streams, num_rows, step.guidance)
            ids, own_keys = self._heads.codes, code_keys
            if streams != EVERY:
                ids, own_keys = ids[streams], own_keys[:, streams]
            if self._stairs:
                guided = self._stairs.mask_ends(guided, rows, step.speaking)
            drawn_from = guided, ids, own_keys
            codes = draw(*drawn_from, step.depth, plan.depth)
            return _both(self._guard.auxiliary(codes, drawn_from, recent, streams) if recent else codes, num_shared)

        said = _both(self._arrays.tensor(_pick(token, step.speaking)), num_shared)
        codes = self._frames(heard, said, draw_codes)[:num_rows]
        spread = self._spread(codes, step.speaking, rows)
        if self._stairs:
            token, spread = self._stairs.climb(token, spread, rows)
        token = self._segments.end_audio(token, rows)
        if self._segments.family.end_frame:
            token = self._segments.end_frame(token, spread, rows)
        return token, spread

    def _penalized(self, logits: torch.Tensor, rows: Rows, index: Array | None) -> torch.Tensor:
        """Return the logits with the repetition penalty applied."""
        assert self._said is not None
        slots, penalty = _pick(rows.slots, index), _pick(rows.scales.repetition_penalty, index)
        return penalize(logits, self._arrays.tensor(self._said[slots, :-1]), self._arrays.tensor(penalty))

    def _first_logits(self, heard: torch.Tensor, num_rows: int, scale: torch.Tensor) -> torch.Tensor:
        """Return stream 0's logits of the first `num_rows` of `heard`, guided by the unconditional rows after them."""
        if not self._guides_first or len(scale) == 0:
            return self._heads.first(heard[:num_rows])
        return _merge(self._heads.first(heard), num_rows, scale)

    def _guided_codes(self, logits: torch.Tensor, streams: slice, num_rows: int, scale: torch.Tensor) -> torch.Tensor:
        """Return the guided logits of `streams` of streams 1 and up: [A + P, k, C] -> [A, k, C]."""
        if len(scale) == 0:
            return logits
        is_guided = self._guided[streams]
        if is_guided.all():
            return _merge(logits, num_rows, scale)
        conditional = logits[:num_rows]
        for stream in np.flatnonzero(is_guided):
            conditional[:, stream] = _merge(logits[:, stream], num_rows, scale)
        return conditional

    def _draw_first(
        self,
        logits: torch.Tensor,
        keys: np.ndarray,
        plan: BatchPlan,
        step: PlanArrays,
        rows: Rows,
        recent: RecentRows | None,
    ) -> Array:
        """Return stream 0 of the rows that may be in audio."""
        segments, index = self._segments, step.speaking
        if segments.script:
            stay = self._arrays.tensor(_pick(segments.stay_column(rows, self._script), index))
            temperature = self._arrays.tensor(_pick(rows.scales.script_temperature, index))
            advance = advances(logits, stay, temperature, self._tensor(uniform(keys[:, 0], np.zeros(1, np.int64))))
            return segments.follow_script(self._spread(advance.long(), index, rows) > 0, rows, self._script)
        if self._said is not None and not segments.rules.num_text_ids:
            counted = logits[:, : self._said.shape[1] - 1]
            counted.copy_(self._penalized(counted, rows, index))
        near = masked = segments.mask_audio(logits, rows, index)
        ids, own_keys = self._heads.first_ids[None], self._tensor(keys)
        if plan.has_min_p:
            near = keep_near(masked, self._arrays.tensor(_pick(rows.scales.audio_span, index)))
        token = draw(near[:, None], ids, own_keys, step.audio, plan.audio)
        if recent:
            token = self._guard.first(token, (masked[:, None], ids, own_keys), recent)
        return self._spread(token.squeeze(1), index, rows)


def _pick(values: Array, index: Array | None) -> Array:
    return values if index is None else values[index]


def _both(drawn: torch.Tensor, num_paired: int) -> torch.Tensor:
    """Return the ids of A rows followed by those of the first P, for their unconditional rows."""
    return torch.cat([drawn, drawn[:num_paired]]) if num_paired else drawn


def _merge(logits: torch.Tensor, num_rows: int, scale: torch.Tensor) -> torch.Tensor:
    """Return the logits of `num_rows` rows, the first P guided by the rows after them: [A + P, ...] -> [A, ...]."""
    num_paired = len(scale)
    guided = guide(logits[:num_paired], logits[num_rows:], scale)
    return guided if num_paired == num_rows else torch.cat([guided, logits[num_paired:num_rows]])
