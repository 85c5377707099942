"""Before a step: what each running request may compute, and who gives way so that it fits. By whole pairs."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from vllm.v1.request import Request

from stretto.engine.scheduling.grants import RunningRow, plan_grants
from stretto.engine.scheduling.kv_blocks import KvBlocks
from stretto.engine.scheduling.request_table import RequestTable


class StepPlan(NamedTuple):
    """What the next step may do.

    running: who runs, in order. grants: how many rows each may compute. awaited: halves that wait for a place beside
    their running partners, the oldest pair's first. giving_way: who must go before the rest fits, and none of the plan
    holds then: a pair or a single request, in the order in which they take the head of the queue.
    """

    running: list[Request]
    grants: dict[str, int]
    awaited: Sequence[Request] = ()
    giving_way: Sequence[Request] = ()


class PairPlanner:
    """Grants rows to whole pairs and lets whole pairs give way, so that vLLM's own preemption finds nothing to do."""

    def __init__(self, table: RequestTable, blocks: KvBlocks):
        self._table, self._blocks = table, blocks
        self._has_bursts = table.rules.max_rows_per_step > 1
        # Who runs, and how many slots the other halves of running pairs will need; brought up to date when asked for.
        self._running_ids: set[str] = set()
        self._owed = 0
        # While the same requests decode, the last plan holds: its requests and the table's revision then.
        self._steady: list[Request] | None = None
        self._revision = 0
        self._grants: dict[str, int] = {}
        self._num_granted = 0

    def plan(self, running: list[Request], budget: int) -> StepPlan:
        """The plan for a step of at most `budget` rows."""
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
        """Whether the last step's plan holds: the same requests decode, and a block for each is free.

        Who came and went in between is still counted among who runs.
        """
        return (
            running == self._steady
            and self._revision == self._table.revision
            and len(self._running_ids) <= len(running) <= self._blocks.num_free()
        )

    def _grant_again(self, running: list[Request], budget: int) -> bool:
        """Grant each of `running` what its last step said, which bursts change from step to step; whether it fits."""
        grants = {request.request_id: _num_unread(request) for request in running}
        num_granted = sum(grants.values())
        if num_granted > budget or sum(map(self._blocks.needed, grants.values())) > self._blocks.num_free():
            return False
        self._grants, self._num_granted = grants, num_granted
        return True

    def _decodes(self, row: RunningRow) -> bool:
        """Whether `row` lacks only what it said last and gets it, and its pair is whole or has no second half."""
        if not row.is_decoding or self._grants[row.request_id] != row.remaining:
            return False
        pair, track = self._table[row.request_id].pair, self._table[row.request_id].track
        may_wait = track is not None and track.is_open  # for words, in the next step
        return not may_wait and (row.partner is not None or pair is None or pair.unconditional is None)

    def _in_order(self, running: list[Request]) -> list[Request]:
        """Each unconditional half behind its partner: a pair is as old as its older half."""
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
        if state.track is not None:  # the word of the last row may not have come
            awaits |= request.num_computed_tokens + remaining > state.track.num_known
        return RunningRow(request.request_id, remaining, may_finish=not awaits, is_decoding=decodes)

    def _fits(self, running: Iterable[Request], tail: list[Request], awaited: Iterable[Request]) -> bool:
        """Whether the blocks that the grants need are free, and those of halves without which older pairs are held.

        Nobody gives way to a half of the youngest pair. An upper bound spares the exact count most steps.
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
        """Halves still in the queue whose partners run, those of older pairs first."""
        ids = {request.request_id for request in running}
        others = (self._table.partner(request.request_id) for request in running)
        return [self._table[other].request for other in others if other is not None and other not in ids]

    def _tail(self, running: list[Request]) -> list[Request]:
        """The running halves of the pair, or the single request, that gives way first; before all, who is held."""
        if not running:
            return []
        last = next((each for each in reversed(running) if self._table[each.request_id].waits_for_words), running[-1])
        partner = self._table.partner(last.request_id)
        return [request for request in running if request.request_id in (last.request_id, partner)]

    def _with_partner(self, tail: list[Request]) -> list[Request]:
        """Those of `tail` and, before them, a half that waits already; the conditional half last."""
        halves = sorted(tail, key=lambda half: not self._table[half.request_id].is_unconditional)
        partner = self._table.partner(halves[0].request_id) if halves else None
        waiting = [] if partner is None or len(halves) == 2 else [self._table[partner].request]
        return waiting + halves

    def stuck(self, running: list[Request]) -> list[Request]:
        """Who gives way where a step computes nothing: halves hold blocks and wait for each other's."""
        tail = self._tail(running)
        is_moving = all(self._table[each.request_id].waits_for_words for each in running) or any(
            request.num_in_flight_tokens for request in running
        )
        return [] if is_moving or tail == running else self._with_partner(tail)

    def has_slot(self, request_id: str, running: list[Request], num_slots: int) -> bool:
        """Whether a request finds a run slot, with those kept free that the halves of running pairs will need."""
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
        """Hold a step of `num_rows` rows to the invariant, unless all that run decode as granted, in whole pairs."""
        is_steady = self._steady is not None and len(self._steady) == len(running) == len(scheduled)
        if not is_steady or num_rows != self._num_granted:
            check_pairs(self._table, scheduled)


def _num_unread(request: Request) -> int:
    """Rows that have been said and not read, those of a step in flight among them."""
    return request.num_tokens + request.num_output_placeholders - request.num_computed_tokens


def check_pairs(table: RequestTable, scheduled: Mapping[str, int]) -> None:
    """The invariant: a half that samples a guided row has its other half sample in the same step."""
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
