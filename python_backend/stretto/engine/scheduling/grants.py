"""How many rows of each running request a step computes: a pure function.

The invariant: once guidance has begun, both halves of a pair sample in the same step or neither does. A half may
always be computed up to the row before the one that samples; that last row is granted to both halves or to none.
Of a reply that decodes, what the last step said is granted whole or not at all: a step samples behind its last row.
"""

from collections.abc import Iterable
from typing import NamedTuple


class RunningRow(NamedTuple):
    """A running request as the planner sees it: rows still to compute, and the partner that must sample with it.

    partner: id of the other half if this step's sample is guided (even if that half does not run yet), else None.
    may_finish: whether the last row may be computed at all; the unconditional half's may not before guidance begins.
    is_decoding: whether what remains is what the last step said.
    """

    request_id: str
    remaining: int
    partner: str | None = None
    may_finish: bool = True
    is_decoding: bool = False


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
            grant = grants[half.request_id] = _grant(half, is_joint, budget)
            budget -= grant
    return grants


def _grant(row: RunningRow, may_finish: bool, budget: int) -> int:
    if row.is_decoding:
        return row.remaining if may_finish and row.remaining <= budget else 0
    wanted = row.remaining if may_finish else row.remaining - 1
    return min(wanted, budget) if row.remaining > 0 else 0
