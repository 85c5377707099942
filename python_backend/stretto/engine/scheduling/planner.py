"""Step planning: rows granted to each running request, and preemption by whole CFG pairs."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from vllm.v1.request import Request

from stretto.engine.scheduling.grants import RunningRow, plan_grants
from stretto.engine.scheduling.kv_blocks import KvBlocks
from stretto.engine.scheduling.request_table import RequestTable


class StepPlan(NamedTuple):
    """Plan of the next step.

    Attributes:
        running: Running requests in scheduling order.
        grants: Number of rows that each request may compute, by request id.
        awaited: Queued requests whose CFG partner runs, those of the oldest pair first.
        giving_way: Requests to preempt (one pair or one single request), in the order in which they enter the head of
            the queue. If not empty, the rest of the plan is void.
    """

    running: list[Request]
    grants: dict[str, int]
    awaited: Sequence[Request] = ()
    giving_way: Sequence[Request] = ()


class PairPlanner:
    """Planner that grants rows to, and preempts, whole CFG pairs, so that vLLM itself never has to preempt."""

    def __init__(self, table: RequestTable, blocks: KvBlocks):
        self._table, self._blocks = table, blocks
        self._has_bursts = table.rules.max_rows_per_step > 1
        # Running request ids, and slots reserved for their partners; updated lazily by `_count`.
        self._running_ids: set[str] = set()
        self._owed = 0
        # Requests and table revision of the last plan, which holds while the same requests decode.
        self._steady: list[Request] | None = None
        self._revision = 0
        self._grants: dict[str, int] = {}
        self._num_granted = 0

    def plan(self, running: list[Request], budget: int) -> StepPlan:
        """Return the plan for the next step.

        Args:
            running: Running requests, oldest first.
            budget: Maximum number of rows in the step.
        """
        if self._is_steady(running) and (not self._has_bursts or self._grant_again(running, budget)):
            return StepPlan(running, self._grants)
        running = self._in_order(running)
        self._running_ids, self._owed = set(), 0
        rows = [self._row(request) for request in running]
        grants = self._grants = plan_grants(rows, budget)
        self._num_granted = sum(grants.values())
        awaited, tail = self.awaited(running), self._tail(running)
        fits = tail == running or self._fits(running, tail, awaited)
        self._steady = running.copy() if fits and all(map(self._decodes, rows)) else None
        self._revision = self._table.revision
        return StepPlan(running, grants, awaited, () if fits else self._with_partner(tail))

    def _is_steady(self, running: list[Request]) -> bool:
        """Return True if the previous plan still holds: the same requests decode, with a free block for each.

        Requests that came and went in between are still counted as running.
        """
        return (
            running == self._steady
            and self._revision == self._table.revision
            and len(self._running_ids) <= len(running) <= self._blocks.num_free()
        )

    def _grant_again(self, running: list[Request], budget: int) -> bool:
        """Grant each request the rows of its previous step (which multi-token steps vary); return True if they fit."""
        grants = {request.request_id: _num_unread(request) for request in running}
        num_granted = sum(grants.values())
        if num_granted > budget or sum(map(self._blocks.needed, grants.values())) > self._blocks.num_free():
            return False
        self._grants, self._num_granted = grants, num_granted
        return True

    def _decodes(self, row: RunningRow) -> bool:
        """Return True if `row` is granted exactly its newest rows and its CFG pair is complete or not guided yet."""
        if not row.is_decoding or self._grants[row.request_id] != row.remaining:
            return False
        pair, track = self._table[row.request_id].pair, self._table[row.request_id].track
        may_wait = track is not None and track.is_open  # the next step may have to wait for text
        return not may_wait and (row.partner is not None or pair is None or pair.unconditional is None)

    def _in_order(self, running: list[Request]) -> list[Request]:
        """Return `running` with each unconditional request after its partner: a pair is as old as its older member."""
        by_id = {request.request_id: request for request in running}
        ordered: dict[str, Request] = {}
        for request_id, request in by_id.items():
            pair = self._table[request_id].pair
            if pair is not None and pair.conditional in by_id:
                ordered[pair.conditional] = by_id[pair.conditional]
                if pair.unconditional in by_id:
                    ordered[pair.unconditional] = by_id[pair.unconditional]
            else:
                ordered[request_id] = request
        return list(ordered.values())

    def _row(self, request: Request) -> RunningRow:
        remaining, decodes = _num_unread(request), not request.is_prefill_chunk
        state = self._table[request.request_id]
        if self._table.guidance_has_begun(state):
            assert state.pair is not None
            other = state.pair.other(request.request_id)
            return RunningRow(request.request_id, remaining, other, is_decoding=decodes)
        awaits = state.is_unconditional or (state.pair is not None and state.pair.awaits_half)
        if state.track is not None:  # the text of the last row may not have arrived
            awaits |= request.num_computed_tokens + remaining > state.track.num_known
        return RunningRow(request.request_id, remaining, may_finish=not awaits, is_decoding=decodes)

    def _fits(self, running: Iterable[Request], tail: list[Request], awaited: Iterable[Request]) -> bool:
        """Return True if enough blocks are free for the grants and for requests that block older pairs.

        The youngest pair's missing request counts for nothing, because no pair is preempted for it. An upper bound is
        tried first; it avoids the exact count in most steps.
        """
        free, blocks, youngest = self._blocks.num_free(), self._blocks, self._with_partner(tail)
        needed = sum(blocks.needed(half.num_tokens) for half in awaited if half not in youngest)
        if needed + sum(map(blocks.needed, self._grants.values())) <= free:
            return True
        for request in running:
            stop = request.num_computed_tokens + self._grants[request.request_id]
            needed += max(0, blocks.needed(stop) - blocks.num_held(request.request_id))
        return needed <= free

    def awaited(self, running: list[Request]) -> list[Request]:
        """Return the queued requests whose CFG partner runs, those of older pairs first."""
        ids = {request.request_id for request in running}
        others = (self._table.partner(request.request_id) for request in running)
        return [self._table[other].request for other in others if other is not None and other not in ids]

    def _tail(self, running: list[Request]) -> list[Request]:
        """Return the running members of the pair, or the single request, to preempt first: blocked replies first."""
        if not running:
            return []
        last = next((each for each in reversed(running) if self._table[each.request_id].waits_for_words), running[-1])
        partner = self._table.partner(last.request_id)
        return [request for request in running if request.request_id in (last.request_id, partner)]

    def _with_partner(self, tail: list[Request]) -> list[Request]:
        """Return `tail` preceded by its partner if that waits in the queue; the conditional request is last."""
        halves = sorted(tail, key=lambda half: not self._table[half.request_id].is_unconditional)
        partner = self._table.partner(halves[0].request_id) if halves else None
        waiting = [] if partner is None or len(halves) == 2 else [self._table[partner].request]
        return waiting + halves

    def stuck(self, running: list[Request]) -> list[Request]:
        """Return the requests to preempt if a step computes no rows because pairs hold blocks that others need."""
        tail = self._tail(running)
        is_moving = all(self._table[each.request_id].waits_for_words for each in running) or any(
            request.num_in_flight_tokens for request in running
        )
        return [] if is_moving or tail == running else self._with_partner(tail)

    def has_slot(self, request_id: str, running: list[Request], num_slots: int) -> bool:
        """Return True if a run slot is free, not counting slots reserved for partners of running requests."""
        self._count(running)
        pair = self._table[request_id].pair
        needed = 1
        if pair is not None:
            needed = 0 if pair.other(request_id) in self._running_ids else 2
        return len(running) + self._owed + needed <= num_slots

    def _count(self, running: list[Request]) -> None:
        for request in running[len(self._running_ids) :]:
            pair = self._table[request.request_id].pair
            if pair is not None:
                self._owed += -1 if pair.other(request.request_id) in self._running_ids else 1
            self._running_ids.add(request.request_id)

    def check(self, scheduled: Mapping[str, int], num_rows: int, running: list[Request]) -> None:
        """Assert the pair invariant for a scheduled step.

        The check is skipped if all running requests decode exactly as granted, because the plan has covered that case.

        Args:
            scheduled: Number of rows scheduled, by request id.
            num_rows: Total number of rows in the step.
            running: Requests that run after scheduling.
        """
        is_steady = self._steady is not None and len(self._steady) == len(running) == len(scheduled)
        if not is_steady or num_rows != self._num_granted:
            check_pairs(self._table, scheduled)


def _num_unread(request: Request) -> int:
    """Return the number of rows generated but not yet computed, including those of a step in flight."""
    return request.num_tokens + request.num_output_placeholders - request.num_computed_tokens


def check_pairs(table: RequestTable, scheduled: Mapping[str, int]) -> None:
    """Assert that both requests of a CFG pair sample in the same step wherever a guided row is sampled."""
    for request_id in scheduled:
        state = table[request_id]
        pair = state.pair
        if pair is None or state.request.is_prefill_chunk:
            continue
        sampled = state.request.num_computed_tokens - table[pair.conditional].request.num_prompt_tokens
        if request_id == pair.conditional and sampled < pair.first_output:
            continue
        other = pair.other(request_id)
        samples = other is not None and other in scheduled and not table[other].request.is_prefill_chunk
        assert samples, f"{request_id} would sample without {other}: {scheduled}, output {sampled} of {pair}"
