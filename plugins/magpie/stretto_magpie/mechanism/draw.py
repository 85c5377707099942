"""Sampling of rows: the position of the text that a row attends to, its codes, and the end of the reply.

The position is the one with the most attention among `window` positions. These begin with the position of the row
before, as in the authors' `get_most_attended_text_timestep`. A position is left after MAX_ATTENDED rows. Positions
never decrease, so the rows that attended to a position are the newest ones. The last positions of a text are left out.
If none remains, the very last one counts as attended to. After SINK_ROWS such rows, the attention has no prior. The
attention to a text of at most SHORTEST tokens never has one.
"""

from typing import Any

import numpy as np
import torch

from stretto.engine.sampling.guidance import guide
from stretto.engine.worker.batch_plan import BatchPlan, PlanArrays
from stretto.engine.worker.predictors import Readout, exact_product
from stretto.engine.worker.sampler import RecentRows, RowDraw
from stretto.engine.worker.segment_state import Rows
from stretto.engine.worker.slots import Array
from stretto_magpie.family import AttendedText

MAX_ATTENDED = 8
SINK_ROWS = 10
FIRST = 1  # position from which the first row's is searched
SHORTEST = 5
NUM_LEFT_OUT = 3  # last positions of a text, which the window leaves out


class AttendedDraw(RowDraw):
    """Sampler of rows in numpy or torch, whose decoder may also end a reply."""

    def __init__(self, rules: AttendedText, readout: Readout, *arguments: Any):
        super().__init__(readout, *arguments)
        model = readout.model
        self._rules = rules
        self._num_tokens = self.arrays.wrap(model.conditions.num_tokens)
        self._read = self.arrays.wrap(model.conditions.read)
        self._stop = exact_product(model.depth.first_head.data)
        self._stop_bias = model.depth.stop_bias.data.float()
        self._text_positions = self.arrays.upload(np.arange(self._read.shape[1]))
        self._back = self.arrays.upload(np.arange(1, SINK_ROWS))
        self._no_prior = self.segments.family.layout.audio[0][-1]
        ends = [ids[0] for ids in self.segments.family.layout.extra[1:]]
        self._ends = self.arrays.upload(np.array(ends))
        self._stops: Array = self._back[:0]

    def draw_audio(
        self, hidden: torch.Tensor, keys: np.ndarray, plan: BatchPlan, step: PlanArrays, rows: Rows
    ) -> tuple[Array, Array]:
        """Sample rows, and note in which of them the decoder's own heads predict the end (`RowDraw.draw_audio`)."""
        audio_hidden = hidden if step.audio_rows is None else hidden[step.audio_rows]
        self._stops = self._stopped(audio_hidden, len(keys), step, rows)
        return super().draw_audio(hidden, keys, plan, step, rows)

    def _stopped(self, hidden: torch.Tensor, num_rows: int, step: PlanArrays, rows: Rows) -> Array:
        """Return True for rows in which the decoder's heads find the end most probable for any code, [M].

        Args:
            hidden: Hidden states of A rows, followed by P unconditional rows, [A + P, H].
            num_rows: Number of conditional rows, A.
        """
        logits = self._stop(hidden)
        num_paired = len(step.guidance)
        if num_paired:
            logits[:num_paired] = guide(logits[:num_paired], logits[num_rows:], step.guidance)
        by_code = (logits[:num_rows] + self._stop_bias).unflatten(1, (len(self._ends), -1))
        self.segments.mask_other_ends(by_code, rows, step.speaking)
        is_end = (by_code.argmax(-1) == self._rules.num_codes).any(1)
        return self.spread(is_end, step.speaking, rows) != 0

    def draw_first(
        self,
        logits: torch.Tensor,
        keys: np.ndarray,
        plan: BatchPlan,
        step: PlanArrays,
        rows: Rows,
        recent: RecentRows | None,
    ) -> Array:
        """Return the position of the text that each row attended to, or `no_prior`, [M]."""
        xp = self.arrays.xp
        none = self._no_prior + 0 * rows.position
        if not self._rules.window:
            return none
        end = self._num_tokens[rows.slots] - 1
        before = self.tokens[rows.slots[:, None], xp.clip(rows.position[:, None] - self._back, 0, None)]
        before = xp.where(before == self._no_prior, end[:, None], before)
        is_row = self._back <= rows.frame[:, None]
        last = xp.where(rows.frame > 0, before[:, 0], FIRST)
        is_same = (before == last[:, None]) & is_row
        first = last + is_same[:, :MAX_ATTENDED].all(1)
        stop = xp.minimum(first + self._rules.window, end + 1 - NUM_LEFT_OUT)
        is_near = (self._text_positions >= first[:, None]) & (self._text_positions < stop[:, None])
        best = xp.where(is_near, self._read[rows.slots], -1.0).argmax(1)
        attended = xp.where(stop > first, best, end)
        is_sink = (attended == end) & ((before == end[:, None]) & is_row).all(1)
        return xp.where(is_sink | (end < SHORTEST), none, attended)

    def penalized_others(self, logits: torch.Tensor, rows: Rows, index: Array | None, streams: slice) -> torch.Tensor:
        """Return the logits without end ids before the minimum length (`RowDraw.penalized_others`)."""
        return self.segments.mask_other_ends(logits, rows, index)

    def replace_streams(self, token: Array, codes: Array, rows: Rows) -> tuple[Array, Array]:
        """Return stream 0 and the codes. Stream 0 is the end in rows that a code or the decoder's heads end."""
        is_end = (codes == self._ends).any(1) | self._stops
        return self.arrays.xp.where(is_end, self.segments.family.end_of_audio, token), codes
