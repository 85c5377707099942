"""Fair-share limits of a shared resource."""

from contextlib import ExitStack

from stretto.limits import FairLimit


def test_fair_limit_gives_a_host_at_most_the_remaining_units() -> None:
    shares = FairLimit(8)
    with ExitStack() as stack:
        taken = [stack.enter_context(shares.reserving(host)) for host in "aaaaabbbcc"]
    assert taken == [True] * 4 + [False] + [True] * 2 + [False] + [True] + [False]
    with ExitStack() as stack:
        assert [stack.enter_context(shares.reserving("b")) for _ in range(5)] == [True] * 4 + [False]


def test_fair_limit_amounts_are_all_or_nothing_and_released() -> None:
    shares = FairLimit(8)
    assert shares.has_free("a", 8)
    shares.acquire("a", 3)
    assert [shares.has_free("a", amount) for amount in (2, 3)] == [True, False]
    assert [shares.has_free("b", amount) for amount in (5, 6)] == [True, False]
    shares.acquire("b", 5)
    assert not shares.has_free("c")
    assert (shares.held, shares.held_by("b"), shares.held_by("c")) == (8, 5, 0)
    for host, amount in (("a", 3), ("b", 5)):
        shares.release(host, amount)
    assert not shares._taken
