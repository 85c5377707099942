"""Turns of client hosts: slots, preemption and rows of a step. One host alone is scheduled as without turns."""

from collections import Counter
from collections.abc import Mapping, Sequence

import pytest
from vllm.v1.request import Request

from stretto.engine.scheduling.client_turns import ClientTurns, step_quantum
from stretto.engine.scheduling.planner import PairPlanner
from tests.engine.scheduling.tables import BLOCK, FakeBlocks, arrive, pair, queue, run, table

QUANTUM, NUM_SLOTS = 4, 8


class World:
    """Turns with a request table, a planner, and blocks that the test sets."""

    def __init__(self) -> None:
        self.table, self.blocks = table(), FakeBlocks()
        self.planner = PairPlanner(self.table, self.blocks)
        self.turns = ClientTurns(self.table, self.planner, QUANTUM)
        self.table.followers = (self.turns,)

    def single(self, name: str, **how: object) -> Request:
        """Return a queued unguided request; the first letter of its name is its host."""
        return arrive(self.table, name, host=name[0], **{"guidance_scale": 1.0, **how})  # type: ignore[arg-type]

    def pair(self, name: str) -> list[Request]:
        return list(pair(self.table, name, host=name[0]))

    def replies(self, host: str, number: int) -> list[Request]:
        return [self.single(f"{host}{index}") for index in range(number)]

    def preempted(self, first: Request, running: list[Request]) -> list[str]:
        self.planner.plan(running, 100)
        return names(self.turns.to_preempt(first, running, NUM_SLOTS))

    def steps(self, running: Sequence[Request], number: int, rows: int = 1) -> Counter[str]:
        """Schedule steps in which each running request has `rows` rows; return the number of rows of each request."""
        total = Counter[str]()
        for _ in range(number):
            total += self.step(running, rows)
        return total

    def step(self, running: Sequence[Request], rows: int = 1, joining: Sequence[Request] = ()) -> Counter[str]:
        grants = self.turns.share_step({each.request_id: rows for each in running}, running, joining)
        resting = self.turns.resting(joining)
        scheduled = {name: number for name, number in grants.items() if number}
        scheduled |= {each.request_id: each.num_tokens for each in joining if each not in resting}
        self.turns.end_schedule(scheduled)
        return Counter(scheduled)


@pytest.fixture
def world() -> World:
    return World()


def names(requests: Sequence[Request]) -> list[str]:
    return [request.request_id for request in requests]


def of_hosts(rows: Mapping[str, int]) -> Counter[str]:
    found = Counter[str]()
    for name, number in rows.items():
        found[name[0]] += number
    return found


def test_queue_grants_and_slots_of_one_host_stay_unchanged(world: World) -> None:
    running, waiting = run(*world.replies("a", 8)), queue(*(world.single(f"a1{index}") for index in range(3)))
    before = list(waiting)
    world.turns.order(waiting, running)
    assert list(waiting) == before
    grants = {each.request_id: 1 for each in running}
    assert world.turns.share_step(grants, running, before) is grants
    assert world.preempted(before[0], running) == []
    assert world.turns.resting(before) == []


def test_next_request_is_of_the_host_with_the_fewest_slots(world: World) -> None:
    running = run(*world.replies("a", 3), *world.pair("b0"))
    waiting = queue(*(world.single(name) for name in ("a3", "a4", "b1", "b2", "c0")), *world.pair("c1"))
    world.turns.order(waiting, running)
    # slots in use: a 3, b 2, c 0; a pair takes two
    assert names(waiting) == ["c0", "c1", "c1#unconditional", "b1", "a3", "b2", "a4"]


def test_partners_of_running_requests_stay_first(world: World) -> None:
    (one, one_half), (two, two_half) = world.pair("a0"), world.pair("a1")
    waiting = queue(one_half, two_half, world.single("a2"), world.single("b0"))
    world.turns.order(waiting, run(one, two))
    assert names(waiting) == ["a0#unconditional", "a1#unconditional", "b0", "a2"]


def test_youngest_reply_of_the_largest_host_gives_its_slot(world: World) -> None:
    running = run(*world.pair("a0"), *world.pair("a1"), *world.replies("c", 2), *world.pair("a2"))
    assert world.preempted(world.single("b0"), running) == ["a2#unconditional", "a2"]


def test_no_request_overtakes_one_of_its_host_whose_output_is_in_flight(world: World) -> None:
    """vLLM skips a preempted request while a step that computes it runs."""
    waiting = [world.single(name) for name in ("a0", "b0", "a1", "b1", "a2")]
    waiting[2].num_stale_output_tokens = 1
    assert names(world.turns.resting(waiting)) == ["a1", "a2"]
    waiting[2].drop_stale_output = True  # vLLM computes it again without waiting
    assert world.turns.resting(waiting) == []


def test_nothing_is_preempted_while_there_is_room(world: World) -> None:
    assert world.preempted(world.single("b0"), run(*world.replies("a", NUM_SLOTS - 1))) == []


def test_reply_is_preempted_for_blocks_of_another_host(world: World) -> None:
    world.blocks.free = 2 - 1  # of two that a prompt of eight rows needs
    assert world.preempted(world.single("b0"), run(*world.replies("a", 2))) == ["a1"]


def test_hosts_with_equal_shares_do_not_preempt_each_other(world: World) -> None:
    running = run(*world.replies("a", 4), *world.replies("b", 4))
    assert world.preempted(world.single("b4"), running) == []
    assert world.preempted(world.single("c0"), running) == ["a3"]


@pytest.mark.parametrize(("num_a", "expected"), [(5, ["a4"]), (4, [])])
def test_preemption_stops_once_the_shares_are_equal(world: World, num_a: int, expected: list[str]) -> None:
    running = run(*world.replies("a", num_a), *world.replies("b", NUM_SLOTS - num_a))
    assert world.preempted(world.single("b9"), running) == expected


def test_live_sessions_are_never_preempted_for_other_hosts(world: World) -> None:
    running = run(*world.replies("a", NUM_SLOTS))
    world.blocks.sessions = {each.request_id for each in running[1:]}
    assert world.preempted(world.single("b0"), running) == ["a0"]
    world.blocks.sessions.add("a0")
    assert world.preempted(world.single("b1"), running) == []


@pytest.mark.parametrize(("first", "expected"), [("b", "a2"), ("a", "a2")])
def test_blocks_are_taken_from_the_largest_host(world: World, first: str, expected: str) -> None:
    """The youngest running request is preempted otherwise, as while the hosts use as many slots."""
    running = run(
        *(world.single(name) for name in {"a": ("a0", "a1", "a2", "b0"), "b": ("b0", "a0", "a1", "a2")}[first])
    )
    world.blocks.free, world.blocks.held = 0, {each.request_id: -(-each.num_tokens // BLOCK) - 1 for each in running}
    assert names(world.planner.plan(running, 100).to_preempt) == [expected]
    assert names(world.planner.plan([running[0], running[3]], 100).to_preempt) == [running[3].request_id]


def test_other_hosts_rows_bound_those_of_a_host(world: World) -> None:
    running = run(*(half for index in range(8) for half in world.pair(f"a{index}")), *world.pair("b0"))
    rows = world.steps(running, 40)
    assert of_hosts(rows) == {"a": 40 * QUANTUM, "b": 80}
    assert {rows[f"a{index}"] for index in range(8)} == {10}, "the replies of a host take turns"
    assert all(rows[f"a{index}"] == rows[f"a{index}#unconditional"] for index in range(8))


def test_hosts_compute_as_many_rows_as_the_smallest(world: World) -> None:
    running = run(*world.replies("a", 12), *world.replies("b", 6))
    assert of_hosts(world.steps(running, 12)) == {"a": 12 * 6, "b": 12 * 6}


def test_host_computes_all_rows_once_the_others_have_none(world: World) -> None:
    running = run(*world.replies("a", 12), world.single("b0"))
    assert of_hosts(world.step(running)) == {"a": QUANTUM, "b": 1}
    grants = {each.request_id: each.request_id != "b0" for each in running}  # as while b0 waits for text
    assert of_hosts(world.turns.share_step(grants, running, [])) == {"a": 12, "b": 0}
    world.table.remove("b0")
    assert of_hosts(world.step(running[:-1])) == {"a": 12}


def test_prompts_count_as_rows(world: World) -> None:
    """A prompt is read at once, and its host's replies skip as many steps as it was long."""
    running, prompt = run(*world.replies("a", 8), world.single("b0")), world.single("a9", num_rows=5 * QUANTUM)
    assert of_hosts(world.step(running, joining=[prompt])) == {"a": 5 * QUANTUM, "b": 1}
    later = world.single("a10")
    for _ in range(4):
        assert of_hosts(world.step(running, joining=[later])) == {"b": 1}
    assert of_hosts(world.step(running, joining=[later])) == {"a": later.num_tokens, "b": 1}


def test_small_host_never_skips_a_step(world: World) -> None:
    """Not even after a long prompt."""
    running = run(*world.replies("a", 8), world.single("b0"))
    world.step(running, joining=[world.single("b1", num_rows=50)])
    assert of_hosts(world.steps(running, 4))["b"] == 4


def test_live_sessions_never_skip_a_step(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    running = run(*world.replies("a", 8), world.single("b0"))
    live = {"a0", "a3"}
    kind = type(world.table["a0"])
    monkeypatch.setattr(kind, "is_live", property(lambda state: state.request.request_id in live))
    rows = world.steps(running, 12)
    assert {rows[name] for name in live} == {12}
    assert all(0 < rows[f"a{index}"] < 12 for index in range(8) if f"a{index}" not in live)


def test_empty_step_ends_the_limit(world: World) -> None:
    running = run(*world.replies("a", 8), world.single("b0"))
    world.step(running, joining=[world.single("a9", num_rows=50)])
    assert world.turns.are_limiting
    world.turns.end_schedule({})
    assert not world.turns.are_limiting
    assert world.step(running)["a0"] == 1


@pytest.mark.parametrize(("device", "expected"), [("cpu", 16), ("cuda", 64)])
def test_quantum_is_a_quarter_of_the_slots_on_a_cpu(device: str, expected: int) -> None:
    assert step_quantum(device, 64) == expected
