"""Fair shares of client hosts in an engine: run slots, KV blocks and rows of a step."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from vllm.v1.core.sched.request_queue import RequestQueue
from vllm.v1.request import Request

from stretto.engine.scheduling.planner import PairPlanner
from stretto.engine.scheduling.request_state import RequestState
from stretto.engine.scheduling.request_table import RequestTable

CPU_SHARE = 0.25  # see `step_quantum`


def step_quantum(device_type: str, max_num_seqs: int) -> int:
    """Return the number of rows per step that a host may compute while other hosts have rows, too.

    On a CPU, the rows of other hosts slow down each step. On a GPU, a step of `max_num_seqs` rows takes little longer
    than one of two rows, so that only prompts are limited.
    """
    return max(2, int(CPU_SHARE * max_num_seqs)) if device_type == "cpu" else max_num_seqs


class ClientTurns:
    """Policy by which client hosts take turns. It changes nothing while all requests are from one host.

    Slots: The next request to be admitted belongs to the host that uses the fewest run slots. If there is no slot for
    it, or too few KV blocks, the youngest reply of the host with the most slots is preempted. That host must keep at
    least as many slots as the other one then uses. The requests of a host keep their order.

    Rows: While several hosts have rows in a step, each computes `quantum` rows on average, or as many as the host with
    the fewest. Prompts count, too. A host's replies take turns. This is deficit round robin (Shreedhar and Varghese,
    Efficient fair queuing using deficit round robin, 1995). Rows of live sessions are never delayed.
    """

    def __init__(self, table: RequestTable, planner: PairPlanner, quantum: int):
        self._table = table
        self._planner = planner
        self._quantum = quantum
        planner.of_largest_host = self._of_largest_host
        self._num_replies = Counter[str]()
        self._hosts: dict[str, str] = {}  # by id of the conditional request
        # Rows that a host may compute before its replies skip a step; negative after a long prompt.
        self._balances: dict[str, int] = {}
        self._step = 0
        self._stepped: dict[str, int] = {}  # last step of each reply, while hosts share the steps

    def add(self, state: RequestState) -> None:
        """Count a request that has arrived."""
        self._hosts[state.request.request_id] = state.host
        self._num_replies[state.host] += 1

    def remove(self, request_id: str) -> None:
        """Stop counting a request that has ended."""
        self._stepped.pop(request_id, None)
        host = self._hosts.pop(request_id, None)
        if host is not None:
            self._num_replies[host] -= 1
            if not self._num_replies[host]:
                del self._num_replies[host]  # drop empty entries: the number of distinct hosts is unbounded

    @property
    def are_needed(self) -> bool:
        """True if requests of more than one host exist."""
        return len(self._num_replies) > 1

    @property
    def are_limiting(self) -> bool:
        """True if replies of a host may have skipped the last planned step."""
        return bool(self._balances)

    def _host(self, request: Request) -> str:
        return self._table[request.request_id].host

    def _reply(self, request: Request) -> str:
        """Return the id of the conditional request of `request`."""
        pair = self._table[request.request_id].pair
        return request.request_id if pair is None else pair.conditional

    def _num_slots(self, request: Request) -> int:
        return 1 if self._table[request.request_id].pair is None else 2

    def _used_slots(self, running: Iterable[Request]) -> Counter[str]:
        """Return the number of run slots that each host uses or has reserved."""
        used = Counter[str]()
        for request in {self._reply(request): request for request in running}.values():
            used[self._host(request)] += self._num_slots(request)
        return used

    def _of_largest_host(self, running: list[Request]) -> list[Request]:
        """Return the requests of the host that has the most run slots even after a preemption, or else all requests.

        The oldest running reply is therefore never preempted, so that there is always progress.
        """
        if not self.are_needed:
            return running
        (largest, most), *others = self._used_slots(running).most_common()
        of_largest = [request for request in running if self._host(request) == largest]
        is_larger = others and most - self._num_slots(of_largest[-1]) >= others[0][1]
        return of_largest if is_larger else running

    def order(self, queue: RequestQueue, running: Sequence[Request]) -> None:
        """Sort the waiting queue: first requests whose CFG partner is running, then the hosts in turn."""
        if not self.are_needed or len({self._host(request) for request in queue}) < 2:
            return
        waiting = list(queue)
        joined = {self._reply(request) for request in running}
        ordered = [request for request in waiting if self._reply(request) in joined]
        lines: dict[str, dict[str, list[Request]]] = {}
        for request in waiting:
            if self._reply(request) not in joined:
                lines.setdefault(self._host(request), {}).setdefault(self._reply(request), []).append(request)
        used = self._used_slots(running)
        while lines:
            host = min(lines, key=used.__getitem__)
            halves = lines[host].pop(next(iter(lines[host])))
            used[host] += self._num_slots(halves[0])
            ordered += halves
            if not lines[host]:
                del lines[host]
        if ordered != waiting:
            queue.remove_requests(waiting)
            for request in ordered:
                queue.add_request(request)

    def to_preempt(self, first: Request | None, running: list[Request], num_slots: int) -> Sequence[Request]:
        """Return the reply to preempt for the queued request `first`, as a list of requests; empty if there is none."""
        if first is None or not self.are_needed or self._planner.has_room(first, running, num_slots):
            return ()
        if any(self._reply(request) == self._reply(first) for request in running):
            return ()  # its slot and its blocks are reserved
        used = self._used_slots(running)
        wanted = used[self._host(first)] + self._num_slots(first)
        for host, num_used in used.most_common():
            tail = self._planner.tail(
                [request for request in running if self._host(request) == host]
            )  # all running requests belong to one host
            if tail and num_used - self._num_slots(tail[0]) >= wanted:
                return self._planner.with_partner(tail)
        return ()

    def share_step(
        self, grants: Mapping[str, int], running: Iterable[Request], joining: Iterable[Request]
    ) -> Mapping[str, int]:
        """Return the number of rows that each running request may compute, or 0 for replies that skip the step.

        Args:
            joining: Queued requests that are about to be admitted.
        """
        if not self.are_needed:
            self._balances.clear()
            return grants
        rows = Counter[str]()
        joined = Counter[str]()
        replies = dict[str, dict[str, list[str]]]()
        for request in running:
            if num_rows := grants[request.request_id]:
                host = self._host(request)
                rows[host] += num_rows
                if not self._table[self._reply(request)].is_live:
                    replies.setdefault(host, {}).setdefault(self._reply(request), []).append(request.request_id)
        for request in joining:
            joined[self._host(request)] += request.num_tokens - request.num_computed_tokens
        rows += joined
        quantum = max(self._quantum, min(rows.values(), default=0))
        limited = [host for host, num_rows in rows.items() if num_rows > quantum]
        self._balances = {host: min(self._balances.get(host, 0) + quantum, quantum) for host in limited}
        self._step += bool(limited)
        skipping = [
            request_id
            for host in limited
            for request_id in self._skipping(replies.get(host, {}), grants, self._balances[host] - joined[host])
        ]
        return {**grants, **dict.fromkeys(skipping, 0)} if skipping else grants

    def _skipping(self, replies: dict[str, list[str]], grants: Mapping[str, int], num_left: int) -> list[str]:
        """Return the requests of a host that skip the step: those that waited least, once `num_left` rows are used."""
        skipping = []
        for reply in sorted(replies, key=lambda reply: self._stepped.get(reply, 0)):
            if num_left > 0:
                self._stepped[reply] = self._step
                num_left -= sum(grants[request_id] for request_id in replies[reply])
            else:
                skipping += replies[reply]
        return skipping

    def resting(self, waiting: Iterable[Request]) -> list[Request]:
        """Return the queued requests that may not be admitted in this step.

        Their host has no rows left, or the output of a preempted request before them is still in flight. vLLM skips
        that preempted request, and would admit later requests of its host out of order.
        """
        hosts = {host for host, balance in self._balances.items() if balance <= 0}
        resting = list[Request]()
        for request in waiting:
            if request.num_stale_output_tokens and not request.drop_stale_output:
                hosts.add(self._host(request))
            if hosts and self._host(request) in hosts:
                resting.append(request)
        return resting

    def end_schedule(self, scheduled: Mapping[str, int]) -> None:
        """Deduct the rows of a scheduled step. After an empty step, no reply skips the next step."""
        if not scheduled:
            self._balances.clear()
        if self._balances:
            for request_id, num_rows in scheduled.items():
                host = self._table[request_id].host
                if host in self._balances:
                    self._balances[host] -= num_rows
