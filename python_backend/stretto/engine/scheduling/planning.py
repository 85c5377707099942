"""Before a step: what each running request may compute, and who gives way so that it fits. A part of the scheduler."""

import time
from typing import Any

from vllm.v1.request import Request

from stretto.engine.request.pairs import RunningRow, plan_grants
from stretto.engine.scheduling.policies import GuidancePolicies


class StepPlanning(GuidancePolicies):
    """Grants rows to whole pairs and preempts whole pairs, so that vLLM's own preemption finds nothing to do."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._grants: dict[str, int] = {}
        self._admits = True
        self._running_ids: set[str] = set()
        self._owed = 0

    def _plan(self) -> None:
        """Grant rows for the next step, preempting from the tail until their blocks fit; then nobody is admitted."""
        self._admits = True
        self._apply_policies()
        if self._is_steady():
            return
        self._running_ids, self._owed = set(), 0
        self._order_running()
        self._put_awaited_first()
        while True:
            rows = [self._running_row(request) for request in self.running]
            self._grants = plan_grants(rows, self.max_num_scheduled_tokens)
            tail = self._tail()
            if tail == self.running or self._fits(tail):
                break
            self._preempt(tail)
            self._admits = False
        self._steady = self.running.copy() if all(map(self._decodes, rows)) else None

    def _is_steady(self) -> bool:
        """Whether the last step's plan holds: the same requests decode a row each, and a block for each is free.

        Nothing else can change it but a half that comes (`_steady` is None then) or goes (`running` is another), and
        who came and went in between: those are still counted among who runs.
        """
        free = self.kv_cache_manager.block_pool.get_num_free_blocks()
        return self.running == self._steady and len(self._running_ids) <= len(self.running) <= free

    def _decodes(self, row: RunningRow) -> bool:
        """Whether `row` lacks the next row only, and gets it, and its pair, if any, is whole or has no second half."""
        if row.remaining != 1 or self._grants[row.request_id] != 1:
            return False
        pair = self.replies[row.request_id].pair
        return row.partner is not None or pair is None or pair.unconditional is None

    def _count_running(self) -> None:
        """Bring up to date who runs, and how many slots the other halves of running pairs will need."""
        for request in self.running[len(self._running_ids) :]:
            pair = self.replies[request.request_id].pair
            if pair is not None:
                self._owed += -1 if pair.other(request.request_id) in self._running_ids else 1
            self._running_ids.add(request.request_id)

    def _order_running(self) -> None:
        """Put each unconditional half behind its partner: a pair is as old as its older half."""
        running = {request.request_id: request for request in self.running}
        ordered: dict[str, Request] = {}
        for request_id, request in running.items():
            pair = self.replies[request_id].pair
            if pair is not None and pair.conditional in running:
                ordered[pair.conditional] = running[pair.conditional]
                if pair.unconditional in running:
                    ordered[pair.unconditional] = running[pair.unconditional]
            else:
                ordered[request_id] = request
        self.running = list(ordered.values())

    def _running_row(self, request: Request) -> RunningRow:
        remaining = request.num_tokens + request.num_output_placeholders - request.num_computed_tokens
        reply = self.replies[request.request_id]
        if self._guidance_has_begun(request):
            assert reply.pair is not None
            return RunningRow(request.request_id, remaining, reply.pair.other(request.request_id))
        is_held = reply.params.is_unconditional or (reply.pair is not None and reply.pair.is_held)
        return RunningRow(request.request_id, remaining, may_finish=not is_held)

    def _guidance_has_begun(self, request: Request) -> bool:
        """Whether the next row that the pair of `request` samples is guided."""
        pair = self.replies[request.request_id].pair
        if pair is None:
            return False
        conditional = self.requests[pair.conditional]
        return conditional.num_output_tokens + conditional.num_output_placeholders >= pair.first_output

    def _fits(self, tail: list[Request]) -> bool:
        """Whether the blocks that the grants need are free, and those of halves without which older pairs are held.

        An upper bound spares the exact count most steps.
        """
        free = self.kv_cache_manager.block_pool.get_num_free_blocks()
        size = self.block_size
        needed = sum(-(-half.num_tokens // size) for half in self._awaited(tail))
        if needed + sum(-(-grant // size) for grant in self._grants.values()) <= free:
            return True
        for request in self.running:
            held = len(self.kv_cache_manager.get_blocks(request.request_id).blocks[0])
            stop = request.num_computed_tokens + self._grants[request.request_id]
            needed += max(0, -(-stop // size) - held)
        return needed <= free

    def _awaited(self, tail: list[Request]) -> list[Request]:
        """Halves still in the queue whose partners run, but for those of `tail`: nobody gives way to the youngest."""
        if not self.waiting:
            return []
        running = {request.request_id for request in self.running}
        awaited = []
        for request in self.running:
            pair = self.replies[request.request_id].pair
            other = None if pair is None else pair.other(request.request_id)
            if other is not None and other not in running and request not in tail:
                awaited.append(self.requests[other])
        return awaited

    def _tail(self) -> list[Request]:
        """The running halves of the pair, or the single request, that gives way first."""
        if not self.running:
            return []
        last = self.running[-1]
        partner = self.replies.partner(last.request_id)
        return [request for request in self.running if request.request_id in (last.request_id, partner)]

    def _preempt(self, halves: list[Request]) -> None:
        """Preempt what `_tail` returned: it heads the queue, but for the halves that running pairs await."""
        now = time.monotonic()
        ids = {request.request_id for request in halves}
        partner = self.requests.get(self.replies.partner(halves[0].request_id) or "")
        if partner is not None and partner.request_id not in ids:  # a half that waits follows its partner
            self._put_first(partner)
        for request in sorted(halves, key=lambda half: not self.replies[half.request_id].params.is_unconditional):
            self.running.remove(request)
            self._preempt_request(request, now)
        self._put_awaited_first()

    def _put_awaited_first(self) -> None:
        """Halves whose partners run go ahead of all who wait for a place, those of older pairs first."""
        for awaited in reversed(self._awaited([])):
            self._put_first(awaited)
