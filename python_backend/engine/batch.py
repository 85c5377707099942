"""Which rows of a batch are halves of which pairs, known on the host from the slots alone."""

from dataclasses import dataclass

import numpy as np

from python_backend.engine.slots import LIMITS, SCALES, SlotTables
from python_backend.sampling.draw import DrawPlan

NO_ROW = -1


@dataclass(frozen=True)
class BatchPlan:
    """The rows of one step. All indices are int64.

    conditional [M]: rows that draw; slots [M]: their slots; positions of pairs among them: paired [P], whose other
    halves are the rows unconditional [P].
    """

    conditional: np.ndarray
    slots: np.ndarray
    paired: np.ndarray
    unconditional: np.ndarray
    text: DrawPlan
    audio: DrawPlan

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

    return BatchPlan(conditional, drawing, paired, others[paired], plan("text"), plan("audio"))
