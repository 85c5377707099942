"""Guidance pairs, and the pure planner that decides how many rows of each running request a step computes.

The invariant: once guidance has begun, both halves of a pair sample in the same step or neither does. A half may
always be computed up to the row before the one that samples; that last row is granted to both halves or to none.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from stretto.families.base import Family, UnconditionalContext

NOT_YET = 1 << 60
UNCONDITIONAL_SUFFIX = "#unconditional"


def partner_of(request_id: str) -> str:
    """The id of the other half of a guidance pair."""
    if request_id.endswith(UNCONDITIONAL_SUFFIX):
        return request_id.removesuffix(UNCONDITIONAL_SUFFIX)
    return request_id + UNCONDITIONAL_SUFFIX


@dataclass
class GuidancePair:
    """The two halves of a guided reply, by request id.

    first_output: the conditional half's output index at which guidance begins; NOT_YET while it is unknown.
    unconditional: None while there is no such half. is_held: the conditional half waits for one to be created.
    """

    conditional: str
    first_output: int = NOT_YET
    unconditional: str | None = None
    is_held: bool = False

    def part(self) -> None:
        """Note that the unconditional half has gone."""
        self.first_output, self.unconditional = NOT_YET, None

    def other(self, request_id: str) -> str | None:
        """The other half of `request_id`, where there is one yet."""
        return self.unconditional if request_id == self.conditional else self.conditional


class RunningRow(NamedTuple):
    """A running request as the planner sees it: rows still to compute, and the partner that must sample with it.

    partner: id of the other half if this step's sample is guided (even if that half does not run yet), else None.
    may_finish: whether the last row may be computed at all; the unconditional half's may not before guidance begins.
    """

    request_id: str
    remaining: int
    partner: str | None = None
    may_finish: bool = True


def plan_grants(rows: Iterable[RunningRow], budget: int) -> dict[str, int]:
    """Rows to compute of each running request, in order, out of `budget` rows in all."""
    by_id = {row.request_id: row for row in rows}
    grants: dict[str, int] = {}
    for row in by_id.values():
        if row.request_id in grants:
            continue
        partner = by_id.get(row.partner) if row.partner is not None else None
        if row.partner is None:
            is_joint = row.may_finish
        else:
            is_joint = partner is not None and row.remaining + partner.remaining <= budget
        for half in (row,) if partner is None else (row, partner):
            wanted = half.remaining if is_joint else half.remaining - 1
            grants[half.request_id] = min(wanted, budget) if half.remaining > 0 else 0
            budget -= grants[half.request_id]
    return grants


def unconditional_rows(rows: np.ndarray, context: UnconditionalContext, pad_id: int) -> np.ndarray:
    """The context that the unconditional half sees, from the conditional one's rows [n, S]."""
    hidden = rows.copy()
    middle = slice(context.keep_first, max(context.keep_first, len(rows) - context.keep_last))
    hidden[middle] = pad_id
    hidden[middle, 0] = context.null_id
    return hidden


def unconditional_audio(rows: np.ndarray, family: Family) -> np.ndarray:
    """What the unconditional half reads of the conditional one's audio rows [n, S]."""
    context, layout = family.unconditional, family.layout
    hidden = rows.copy()
    for stream in context.hidden_streams:
        if stream > 0:
            hidden[:, stream] = layout.pad_id
        else:
            ids = layout.audio[0]
            hidden[(rows[:, 0] >= ids.start) & (rows[:, 0] < ids.stop), 0] = context.null_id
    return hidden


def num_guided(turns: Sequence[int], num_rows: int) -> int:
    """How many of the first `num_rows` audio rows are guided: guidance goes, comes back, goes ... at `turns`."""
    edges = [0, *(min(turn, num_rows) for turn in turns), num_rows]
    return sum(goes - comes for comes, goes in zip(edges[::2], edges[1::2], strict=False))


def max_blocks(num_rows: int, block_size: int, is_guided: bool) -> int:
    """KV blocks that a reply of `num_rows` rows, prompt included, may come to hold."""
    return -(-num_rows // block_size) * (2 if is_guided else 1)
