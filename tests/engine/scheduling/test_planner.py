"""Planning of CFG pairs as one unit: token grants, order, preemption and slots."""

import pytest
from vllm.v1.request import Request

from stretto.engine.scheduling.planner import PairPlanner, check_pairs
from stretto.engine.scheduling.request_table import RequestTable
from tests.engine.scheduling.tables import BURSTS, CODES, FakeBlocks, arrive, pair, run, speak, table


def ids(requests: object) -> list[str]:
    return [request.request_id for request in requests]


def read(running: list[Request]) -> list[Request]:
    """Advance requests as if a step had been scheduled that computes all their tokens, and return them."""
    for request in running:
        request.num_computed_tokens = request.num_tokens + request.num_output_placeholders
    return running


def planner(known: RequestTable, **blocks: object) -> tuple[PairPlanner, FakeBlocks]:
    fake = FakeBlocks(**blocks)
    return PairPlanner(known, fake), fake


def test_cfg_pairs_are_scheduled_adjacently_by_older_request() -> None:
    known = table()
    (one, one_half), (two, two_half), single = pair(known, "one"), pair(known, "two"), arrive(known, "s")
    plan = planner(known)[0].plan(run(one_half, two, single, one, two_half), 100)
    assert ids(plan.running) == ["one", "one#unconditional", "two", "two#unconditional", "s"]
    assert plan.grants == dict.fromkeys(ids(plan.running), 1)
    assert not plan.awaited
    assert not plan.to_preempt


def test_lone_cfg_request_is_granted_all_rows_but_the_last() -> None:
    known = table()
    one, half = pair(known, "one")
    run(one)
    one.num_computed_tokens, one.is_prefill_chunk = 3, True
    plan = planner(known)[0].plan([one], 100)
    assert plan.grants == {"one": 4}
    assert plan.awaited == [half]


def test_waiting_cfg_pair_is_granted_no_tokens() -> None:
    known = table()
    one = arrive(known, "one", policy="adaptive")
    plan_of = planner(known)[0].plan
    assert plan_of(run(one), 100).grants == {"one": 1}
    known.await_unconditional(known["one"])
    assert plan_of([one], 100).grants == {"one": 0}


@pytest.mark.parametrize(("free", "to_preempt"), [(2, []), (1, ["two#unconditional", "two"])])
def test_youngest_cfg_pair_is_preempted_if_blocks_are_short(free: int, to_preempt: list[str]) -> None:
    """Two of the four requests are about to need a new block."""
    known = table()
    running = [*pair(known, "one"), *pair(known, "two")]
    run(*running)
    held = {"one": 2, "one#unconditional": 2, "two": 1, "two#unconditional": 1}
    plan = planner(known, free=free, held=held)[0].plan(running, 100)
    assert ids(plan.to_preempt) == to_preempt


def test_waiting_unconditional_request_is_preempted_with_partner() -> None:
    known = table()
    one, (two, half) = arrive(known, "one", guidance_scale=1.0), pair(known, "two")
    plan = planner(known, free=0)[0].plan(run(one, two), 100)
    assert plan.to_preempt == [half, two]


def test_kv_blocks_are_reserved_only_for_partners_of_older_pairs() -> None:
    known = table()
    (one, one_half), single = pair(known, "one"), arrive(known, "s", guidance_scale=1.0)
    run(one, single)
    held = {"one": 2, "s": 2}
    plan = planner(known, free=1, held=held)[0].plan([one, single], 100)
    assert plan.awaited == [one_half]
    assert plan.to_preempt == [single], "two blocks for the half of the older"
    plan = planner(known, free=1, held=held)[0].plan([single, one], 100)
    assert plan.to_preempt == (), "the youngest waits for its own"


def test_last_running_request_is_never_preempted() -> None:
    known = table()
    one, half = pair(known, "one")
    assert not planner(known, free=0)[0].plan(run(one, half), 100).to_preempt
    assert not planner(known, free=0)[0].plan([], 100).to_preempt


def test_plan_is_reused_while_the_same_requests_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    known = table()
    running = run(*pair(known, "one"))
    planning, blocks = planner(known)
    first = planning.plan(running, 100)
    monkeypatch.setattr("stretto.engine.scheduling.planner.plan_grants", lambda *_: pytest.fail("planned again"))
    for state in known.values():
        speak(state)
    assert planning.plan(running, 100).grants == first.grants
    blocks.free = 1
    with pytest.raises(pytest.fail.Exception, match="planned again"):
        planning.plan(running, 100)


@pytest.mark.parametrize(
    "change", ["one leaves", "one comes", "a half is dropped", "a pair is held", "one came and went"]
)
def test_changed_running_requests_are_planned_again(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = table()
    one, half = pair(known, "one", policy="adaptive")
    two, running = arrive(known, "two", guidance_scale=1.0), run(one, half)
    run(two)
    running.append(two)
    planning = planner(known)[0]
    planning.plan(running, 100)
    if change == "one leaves":
        running.remove(two)
    elif change == "one comes":
        running += run(arrive(known, "three"))
    elif change == "a half is dropped":
        known.drop_unconditional(known["one"])
    elif change == "a pair is held":
        known.await_unconditional(known["one"])
    else:
        planning.has_slot(arrive(known, "waits").request_id, [*running, *run(arrive(known, "passing"))], 9)
    monkeypatch.setattr("stretto.engine.scheduling.planner.plan_grants", lambda *_: pytest.fail("planned again"))
    with pytest.raises(pytest.fail.Exception, match="planned again"):
        planning.plan([request for request in running if request.request_id in known], 100)


def test_slot_is_reserved_for_each_running_cfg_partner() -> None:
    known = table()
    (one, half), single = pair(known, "one"), arrive(known, "s", guidance_scale=1.0)
    pair(known, "two")
    planning = planner(known)[0]
    running = run(one)
    planning.plan(running, 100)
    assert planning.has_slot("one#unconditional", running, 2), "its own"
    assert not planning.has_slot("s", running, 2)
    assert planning.has_slot("s", running, 3)
    assert not planning.has_slot("two", running, 3)
    assert planning.has_slot("two", running, 4)
    running += run(half, single)
    assert planning.has_slot("two", running, 5)
    assert not planning.has_slot("two", running, 4)


def test_pairs_waiting_for_each_others_blocks_are_detected_as_stuck() -> None:
    known = table()
    (one, _), (two, two_half) = pair(known, "one"), pair(known, "two")
    planning, running = planner(known)[0], run(one, two)
    assert planning.stuck(running) == [two_half, two]
    one.num_in_flight_tokens = 1
    assert planning.stuck(running) == [], "a step is on its way"
    assert planning.stuck(run(two)) == [], "alone, it waits for nobody"


def test_cfg_pair_sampling_unevenly_is_an_error() -> None:
    known = table()
    one, half = read(run(*pair(known, "one")))
    check_pairs(known, {"one": 1, "one#unconditional": 1})
    with pytest.raises(AssertionError, match="one would sample without one#unconditional"):
        check_pairs(known, {"one": 1})
    with pytest.raises(AssertionError, match="one#unconditional would sample without one"):
        check_pairs(known, {"one#unconditional": 1})
    half.is_prefill_chunk = True
    with pytest.raises(AssertionError, match="one would sample without one#unconditional"):
        check_pairs(known, {"one": 1, "one#unconditional": 3})
    one.is_prefill_chunk = True
    check_pairs(known, {"one": 2, "one#unconditional": 3})


def test_text_segment_is_sampled_without_a_cfg_partner() -> None:
    known = table()
    read(run(arrive(known, "one", task="chat")))
    check_pairs(known, {"one": 1})


def test_unplanned_step_must_keep_the_pair_invariant() -> None:
    known = table()
    running = run(*pair(known, "one"))
    planning = planner(known)[0]
    planning.plan(running, 100)
    read(running)
    planning.check({"one": 1, "one#unconditional": 1}, 2, running)
    with pytest.raises(AssertionError, match="would sample without"):
        planning.check({"one": 1}, 1, running)


def burst(known: RequestTable, request: Request, num_rows: int) -> None:
    """Advance `request` as if it had computed all tokens and its step had generated `num_rows` rows."""
    request.num_computed_tokens = request.num_tokens
    known[request.request_id].history.put(request.num_tokens, [CODES] * num_rows)
    request.append_output_token_ids([7] * num_rows)


@pytest.mark.parametrize(("budget", "free"), [(100, 100), (12, 4)])
def test_reused_plan_grants_the_rows_of_the_last_step(budget: int, free: int) -> None:
    known = table(BURSTS)
    running = run(*pair(known, "one"), arrive(known, "s", guidance_scale=1.0))
    planning, _ = planner(known, free=free, held=dict.fromkeys(ids(running), 6))
    assert planning.plan(running, budget).grants == dict.fromkeys(ids(running), 1)
    for said in ((3, 3, 4), (1, 1, 1), (4, 4, 1)):
        for request, num_rows in zip(running, said, strict=True):
            burst(known, request, num_rows)
        plan = planning.plan(running, budget)
        assert plan.grants == dict(zip(ids(running), said, strict=True))
        assert not plan.to_preempt
        planning.check(plan.grants, sum(said), read(running))
    for request in running:
        burst(known, request, 5)
    plan = planning.plan(running, budget)
    assert list(plan.grants.values()) == ([5, 5, 5] if budget == 100 else [5, 5, 0]), "whole, or not at all"


def test_truncated_multi_token_step_must_keep_the_pair_invariant() -> None:
    known = table(BURSTS)
    running = run(*pair(known, "one"))
    planning = planner(known)[0]
    for request in running:
        burst(known, request, 3)
    planning.plan(running, 100)
    planning.check({"one": 3, "one#unconditional": 3}, 6, read(running))
    running[1].is_prefill_chunk = True
    with pytest.raises(AssertionError, match="would sample without"):
        planning.check({"one": 3, "one#unconditional": 1}, 4, running)
