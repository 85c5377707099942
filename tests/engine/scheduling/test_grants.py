"""Token grants: the requests of a CFG pair sample together, and no budget is wasted."""

from hypothesis import given
from hypothesis import strategies as st

from stretto.engine.scheduling.planner import RunningRow, plan_grants


@st.composite
def running(draw: st.DrawFn) -> list[RunningRow]:
    """Draw running requests in any order.

    Kinds: single requests, pairs, requests whose partner does not run, and requests that are behind their partner. Some
    decode and have not read their last token.
    """
    rows = []
    remaining = st.one_of(st.just(1), st.integers(1, 40))
    for index in range(draw(st.integers(0, 8))):
        kind = draw(st.sampled_from(["single", "pair", "lonely", "early"]))
        if kind == "single":
            rows.append(RunningRow(f"s{index}", draw(remaining), is_decoding=draw(st.booleans())))
        elif kind == "early":
            rows.append(RunningRow(f"e{index}", draw(remaining), may_finish=False, is_decoding=draw(st.booleans())))
        else:
            rows.append(RunningRow(f"c{index}", draw(remaining), f"u{index}", is_decoding=draw(st.booleans())))
            if kind == "pair":
                rows.append(RunningRow(f"u{index}", draw(remaining), f"c{index}", is_decoding=draw(st.booleans())))
    return draw(st.permutations(rows))


@given(running(), st.integers(0, 120))
def test_cfg_pairs_sample_in_the_same_step(rows: list[RunningRow], budget: int) -> None:
    grants = plan_grants(rows, budget)
    samples = {row.request_id: grants[row.request_id] == row.remaining for row in rows}
    for row in rows:
        assert 0 <= grants[row.request_id] <= row.remaining
        if row.partner is not None:
            assert samples[row.request_id] == samples.get(row.partner, False)
        assert row.may_finish or not samples[row.request_id]
        assert not row.is_decoding or grants[row.request_id] in (0, row.remaining), (
            "a burst is read whole or not at all"
        )
    assert sum(grants.values()) <= budget


@given(running())
def test_ample_budget_delays_only_incomplete_cfg_pairs(rows: list[RunningRow]) -> None:
    grants = plan_grants(rows, 10_000)
    ids = {row.request_id for row in rows}
    for row in rows:
        may = row.may_finish and (row.partner is None or row.partner in ids)
        held = row.remaining if row.is_decoding else 1
        assert grants[row.request_id] == row.remaining - (0 if may else held)


@given(running(), st.integers(80, 120))
def test_first_request_always_progresses(rows: list[RunningRow], budget: int) -> None:
    grants = plan_grants(rows, budget)
    if rows:
        first = rows[0]
        both = {first.request_id, first.partner} & set(grants)
        stuck = not first.may_finish or (first.partner is not None and len(both) == 1)
        assert sum(grants[each] for each in both) > 0 or (stuck and (first.is_decoding or first.remaining == 1))
