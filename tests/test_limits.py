"""Rules that all shared limits follow: fair shares, the identity of hosts, and the order of evictions."""

from contextlib import ExitStack

import pytest

from stretto_contract.limits import FairLimit, eviction_order, host_of


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


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("10.0.0.7", "10.0.0.7"),
        ("::ffff:10.0.0.7", "10.0.0.7"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        ("a host", "a host"),
    ],
)
def test_host_is_an_ipv4_address_or_an_ipv6_network(address: str, host: str) -> None:
    assert host_of(address) == host


def test_eviction_order_is_by_host_load_then_rank() -> None:
    members = [("a", 3), ("a", 1), ("a", 2), ("b", 0), ("c", 5), ("c", 4)]
    order = [*eviction_order(members, lambda each: each[0], lambda each: each[1])]
    assert order == [("a", 1), ("a", 2), ("c", 4), ("b", 0), ("a", 3), ("c", 5)]
