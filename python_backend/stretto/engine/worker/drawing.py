"""From hidden states to one id per stream: heads, guidance, masks, draw. Nothing waits for the device."""

import numpy as np
import torch

from stretto.engine.kernels.gpu.draw import draw
from stretto.engine.worker.arrays import Array, Arrays
from stretto.engine.worker.batch import BatchPlan, PlanArrays
from stretto.engine.worker.heads import StreamHeads
from stretto.engine.worker.repetition import RecentRows, RepetitionGuard
from stretto.engine.worker.segment_state import Rows, SegmentState
from stretto.engine.worker.slots import SlotTables
from stretto.sampling.guidance import guide
from stretto.sampling.noise import host_uniform, stream_keys
from stretto.sampling.script import advances


class RowDraw:
    """Draws the conditional rows of a batch; a guided row sees its partner's logits."""

    def __init__(
        self, heads: StreamHeads, segments: SegmentState, tables: SlotTables, arrays: Arrays, guard: RepetitionGuard
    ):
        self._heads, self._segments, self._arrays, self._guard = heads, segments, arrays, guard
        self._script, self._codes = arrays.of(tables.script), arrays.of(tables.codes)
        family = segments.family
        self._num_streams = family.layout.num_output_streams
        self._guided = [stream - 1 for stream in family.guided_streams if stream > 0]
        self._guides_first = 0 in family.guided_streams

    def keys(self, seed_keys: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """The noise keys of rows, known on the host: [M] int32, [M] int32 -> [M, S] int32."""
        return stream_keys(seed_keys, positions, self._num_streams)

    def __call__(
        self, hidden: torch.Tensor, keys: np.ndarray, plan: BatchPlan, step: PlanArrays, rows: Rows
    ) -> tuple[Array, Array]:
        """Stream 0 [M] and the streams 1 ... [M, S - 1] of the rows that draw, from `hidden` [B, H] of all."""
        text = audio = codes = None
        if plan.may_write:
            text = self._draw_text(hidden, _pick(keys, plan.writing), plan, step, rows)
        if plan.may_speak:
            audio, codes = self._draw_audio(hidden, _pick(keys, plan.speaking), plan, step, rows)
        token = self._segments.choose(text, audio, rows)
        forced = self._codes[rows.slots, rows.position] if plan.has_delayed_tail else None
        return token, self._segments.place_codes(codes, token, rows, forced)

    def _spread(self, drawn: torch.Tensor, index: Array | None, rows: Rows) -> Array:
        """What the rows `index` drew, at their places among all rows."""
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
        """Stream 0 of the rows that may write."""
        own = hidden if step.written is None else hidden[step.written]
        logits = self._segments.mask_text(self._heads.text(own), rows, step.writing)
        token = draw(logits[:, None], self._heads.text_ids[None], self._tensor(keys[:, :1]), step.text, plan.text)
        return self._segments.end_text(self._spread(token.squeeze(1), step.writing, rows), rows)

    def _draw_audio(
        self, hidden: torch.Tensor, keys: np.ndarray, plan: BatchPlan, step: PlanArrays, rows: Rows
    ) -> tuple[Array, Array]:
        """Stream 0 [M] and the streams 1 ... [M, K] of the rows that may speak."""
        heard = hidden if step.heard is None else hidden[step.heard]
        first, auxiliary = self._logits(heard, len(keys), step.guidance)
        recent = self._guard.recent(rows, step.speaking, plan.ras_window) if plan.ras_window else None
        token = self._draw_first(first, keys[:, :1], plan, step, rows, recent)
        logits = auxiliary, self._heads.codes, self._tensor(keys[:, 1:])
        codes = draw(*logits, step.audio, plan.audio)
        if recent:
            codes = self._guard.auxiliary(codes, logits, recent)
        return self._segments.end_audio(token, rows), self._spread(codes, step.speaking, rows)

    def _logits(self, heard: torch.Tensor, num_rows: int, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Both logits of the first `num_rows` of `heard`, raw; the first P are guided by the P behind `num_rows`."""
        first = self._heads.first(heard if self._guides_first else heard[:num_rows])
        auxiliary = self._heads.auxiliary(heard)
        if len(scale) == 0:
            return first, auxiliary
        if self._guides_first:
            first = _merge(first, num_rows, scale)
        if len(self._guided) == auxiliary.shape[1]:
            return first, _merge(auxiliary, num_rows, scale)
        conditional = auxiliary[:num_rows]
        for stream in self._guided:
            conditional[:, stream] = _merge(auxiliary[:, stream], num_rows, scale)
        return first, conditional

    def _draw_first(
        self,
        logits: torch.Tensor,
        keys: np.ndarray,
        plan: BatchPlan,
        step: PlanArrays,
        rows: Rows,
        recent: RecentRows | None,
    ) -> Array:
        """Stream 0 of the rows that may speak."""
        segments, index = self._segments, step.speaking
        if segments.script:
            stay = self._arrays.tensor(_pick(segments.stay_column(rows, self._script), index))
            temperature = self._arrays.tensor(_pick(rows.scales.script_temperature, index))
            advance = advances(logits, stay, temperature, self._tensor(host_uniform(keys[:, 0])))
            return segments.follow_script(self._spread(advance.long(), index, rows) > 0, rows, self._script)
        masked = segments.mask_audio(logits, rows, index)[:, None], self._heads.first_ids[None], self._tensor(keys)
        token = draw(*masked, step.audio, plan.audio)
        if recent:
            token = self._guard.first(token, masked, recent)
        return self._spread(token.squeeze(1), index, rows)


def _pick(values: Array, index: Array | None) -> Array:
    return values if index is None else values[index]


def _merge(logits: torch.Tensor, num_rows: int, scale: torch.Tensor) -> torch.Tensor:
    """The logits of `num_rows` rows, of which the first P are guided by those behind them: [A + P, ...] -> [A, ...]."""
    num_paired = len(scale)
    guided = guide(logits[:num_paired], logits[num_rows:], scale)
    return guided if num_paired == num_rows else torch.cat([guided, logits[num_paired:num_rows]])
