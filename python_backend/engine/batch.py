"""Which rows of a batch are halves of which pairs, known on the host from the slots alone."""

from dataclasses import dataclass

import numpy as np

from python_backend.engine.slots import LIMITS, SCALES, STATE, SlotTables
from python_backend.sampling.draw import DrawPlan

NO_ROW = -1


@dataclass(frozen=True)
class BatchPlan:
    """The rows of one step. All indices are int64.

    num_rows: B, both halves counted. conditional [M]: rows that draw; slots [M]: their slots. paired [P]: those of
    them, counted from 0 to M - 1, whose other halves are the rows unconditional [P]. may_write, may_speak: whether
    any row may be in a text, in an audio segment.
    """

    num_rows: int
    conditional: np.ndarray
    slots: np.ndarray
    paired: np.ndarray
    unconditional: np.ndarray
    text: DrawPlan
    audio: DrawPlan
    may_write: bool = True
    may_speak: bool = True

    @property
    def has_pairs(self) -> bool:
        return len(self.paired) > 0


def plan_batch(slots: np.ndarray, partner: np.ndarray, is_unconditional: np.ndarray, tables: SlotTables) -> BatchPlan:
    """The plan for a batch whose row i lies in `slots[i]`; `partner` and `is_unconditional` are by slot."""
    conditional = np.flatnonzero(~is_unconditional[slots])
    row_of = np.full(len(partner) + 1, NO_ROW)  # the last entry answers for a slot without a partner
    row_of[slots] = np.arange(len(slots))
    others = row_of[partner[slots[conditional]]]
    paired = np.flatnonzero(others != NO_ROW)
    drawing = slots[conditional]
    limits, scales = tables.limits_np[drawing], tables.scales_np[drawing]

    def plan(segment: str) -> DrawPlan:
        temperature, top_p = (scales[:, SCALES[f"{segment}_{name}"]] for name in ("temperature", "top_p"))
        return DrawPlan.of(temperature, limits[:, LIMITS[f"{segment}_top_k"]], top_p)

    may_write = may_speak = True
    if tables.state_np is not None:
        is_writing = tables.state_np[drawing, STATE["audio_start"]] < 0
        may_write = bool(is_writing.any())
        may_speak = not (may_write and is_writing.all())
    return BatchPlan(
        len(slots), conditional, drawing, paired, others[paired], plan("text"), plan("audio"), may_write, may_speak
    )
