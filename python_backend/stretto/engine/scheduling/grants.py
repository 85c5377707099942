"""How many rows of each running request a step computes: a pure function.

The invariant: once guidance has begun, both halves of a pair sample in the same step or neither does. A half may
always be computed up to the row before the one that samples; that last row is granted to both halves or to none.
"""

from collections.abc import Iterable
from typing import NamedTuple


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
