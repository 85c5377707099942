"""Invariants that hold after every step of any history."""

from collections import Counter
from functools import partial

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.request import Request

from stretto.engine.protocol import UNCONDITIONAL_SUFFIX
from stretto.families.vita_audio.bursts import BurstSchedule
from tests.engine.harness import Engine


def conditional_of(request_id: str) -> str:
    return request_id.removesuffix(UNCONDITIONAL_SUFFIX)


class Order:
    """Check of the order of each host's requests: only requests that ran before may overtake others.

    1. No reply waits while a later one of the same host runs.
    2. While a request waits for a slot next to its running partner, no reply of the same host starts to run.
    3. A host's part of the queue begins with awaited partners, followed by other replies, each in order of arrival.
       Hosts that may admit nothing in a step keep their place in the queue until the next one is planned.
    """

    def __init__(self, engine: Engine):
        self.engine = engine
        self.ages: dict[str, int] = {}
        self.hosts: dict[str, str] = {}
        self._beside: dict[str, set[str]] = {}

    def arrive(self, request_id: str, host: str) -> None:
        self.ages[request_id], self.hosts[request_id] = len(self.ages), host

    def check(self) -> None:
        scheduler = self.engine.scheduler
        running = {request.request_id for request in scheduler.running}
        replies = {conditional_of(request_id) for request_id in running}
        waiting = [request.request_id for request in scheduler.waiting]
        awaited = [request_id for request_id in waiting if conditional_of(request_id) in replies]
        fresh = [request_id for request_id in waiting if conditional_of(request_id) not in replies]
        for request_id in fresh:
            later = {other for other in replies if self._is_later(other, request_id)}
            assert not later, f"{request_id} waits while {later} run"
        self._check_awaited(awaited, replies)
        for host in set(self.hosts.values()):
            own, *parts = ([each for each in some if self._host(each) == host] for some in (waiting, awaited, fresh))
            expected = [each for part in parts for each in sorted(part, key=self._age)]
            assert own == expected, f"{host} is out of order: {own}"

    def _check_awaited(self, awaited: list[str], replies: set[str]) -> None:
        self._beside = {half: beside for half, beside in self._beside.items() if half in awaited}
        for half in awaited:
            beside = self._beside.setdefault(half, replies)
            joined = {other for other in replies - beside if self._is_later(other, half)}
            assert not joined, f"{joined} joined while {half} waits"

    def _is_later(self, other: str, request_id: str) -> bool:
        """Return True if `other` is of the same host as `request_id` and has arrived later."""
        return self._host(other) == self._host(request_id) and self._age(other) > self._age(request_id)

    def _host(self, request_id: str) -> str:
        return self.hosts[conditional_of(request_id)]

    def _age(self, request_id: str) -> int:
        return self.ages[conditional_of(request_id)]


def check_pairs(engine: Engine, output: SchedulerOutput) -> None:
    """Check that both requests of a CFG pair sample the same guided rows in the same steps and never run separately."""
    scheduler = engine.scheduler
    running = {request.request_id for request in scheduler.running}
    sampling = {each for each in output.num_scheduled_tokens if not scheduler.requests[each].is_prefill_chunk}
    for request_id in scheduler.table:
        pair = scheduler.table[request_id].pair
        if pair is None or pair.unconditional is None or request_id != pair.conditional:
            continue
        conditional, other = scheduler.requests[pair.conditional], scheduler.requests[pair.unconditional]
        guided = max(0, _num_sampled(conditional) - pair.first_output)
        assert guided == _num_sampled(other), f"{pair}: {guided} guided rows, {_num_sampled(other)} of the other half"
        together = not guided or (pair.conditional in sampling) == (pair.unconditional in sampling)
        assert together, f"{pair}: {sampling} sample"
        split = pair.unconditional in running and pair.conditional not in running
        assert not split, f"{pair} is split: {running}"


def _num_sampled(request: Request) -> int:
    return int(request.num_output_tokens + request.num_output_placeholders)


def check_slots(engine: Engine) -> None:
    """Check that every running request has a slot and every awaited partner has a reserved one."""
    scheduler = engine.scheduler
    running = {request.request_id for request in scheduler.running}
    guided = {request_id for request_id in map(conditional_of, running) if scheduler.table[request_id].pair is not None}
    alone = {conditional_of(request_id) for request_id in running} - guided
    assert len(alone) + 2 * len(guided) <= scheduler.max_num_active_reqs, (alone, guided)


def check_blocks(engine: Engine, num_taken: int) -> None:
    """Check that free blocks, held blocks, the null block and the history's `num_taken` blocks add up to all blocks."""
    pool = engine.scheduler.kv_cache_manager.block_pool
    held: Counter[int] = Counter()
    for request_id in engine.scheduler.requests:
        held.update(block.block_id for block in engine.scheduler.kv_cache_manager.get_blocks(request_id).blocks[0])
    for block in pool.blocks:
        if block.block_id in held:
            assert block.ref_cnt == held[block.block_id], f"block {block.block_id}: {block.ref_cnt} references"
    num_free = pool.get_num_free_blocks()
    assert num_free + len(held) + num_taken + 1 == len(pool.blocks), (num_free, len(held), num_taken)


def bursts_of(engine: Engine, output: SchedulerOutput) -> Counter[str]:
    """Count special cases of multi-token steps in the step that `output` schedules.

    Counted as "preempted bursts": replies that had generated multi-token steps, were preempted, and are now recomputed.
    Counted as "bursts in parts": steps that compute the first rows of a multi-token step and leave the rest to the
    next.
    """
    scheduler, seen = engine.scheduler, Counter[str]()
    joining = {data.req_id for data in output.scheduled_new_reqs}
    for request_id in output.num_scheduled_tokens:
        request, schedule = scheduler.requests[request_id], scheduler.table[request_id].schedule
        if schedule is None or request_id != conditional_of(request_id):
            continue
        num_read, resumes = request.num_computed_tokens - request.num_prompt_tokens, request_id in joining
        seen["preempted bursts"] += resumes and any(map(partial(_is_extra, schedule), range(request.num_output_tokens)))
        seen["bursts in parts"] += request.is_prefill_chunk and num_read > 0 and _is_extra(schedule, num_read)
    return seen


def _is_extra(schedule: BurstSchedule, index: int) -> bool:
    """Return True if row `index` of a reply comes after the main model's row in a multi-token step."""
    return schedule.next_step(index) != index
