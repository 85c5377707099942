"""KV shares: only a class that has used up its share is skipped."""

from types import SimpleNamespace

import pytest

from stretto.engine.scheduling.planner import KEY, KvShares
from stretto.engine.scheduling.request_table import RequestTable
from tests.engine.scheduling.tables import FakeBlocks, arrive, pair, run, table


def shares(known: RequestTable, **options: float) -> KvShares:
    """Return shares of ten blocks of four rows."""
    config = SimpleNamespace(additional_config={KEY: options} if options else {})
    return KvShares(known, FakeBlocks(), config, SimpleNamespace(num_blocks=11))


def test_all_requests_fit_without_kv_shares() -> None:
    known = table()
    running = run(*pair(known, "one", num_rows=100))
    waiting = [arrive(known, "two", num_rows=100)]
    assert shares(known).full(waiting, running) == []
    assert shares(known).has_room(waiting[0], running)
    assert shares(known, understanding=0.1).has_room(waiting[0], running), "its class has no share"


@pytest.mark.parametrize(("num_rows", "has_room"), [(7, True), (8, False)])
def test_kv_share_admits_a_request_that_fits_its_free_blocks(num_rows: int, has_room: bool) -> None:
    """A CFG pair with seven rows and the next row uses four of eight blocks."""
    known = table()
    running = run(*pair(known, "one", num_rows=7))
    waiting = arrive(known, "two", num_rows=num_rows)
    assert shares(known, generation=0.8).has_room(waiting, running) == has_room


def test_first_request_of_a_class_ignores_its_kv_share() -> None:
    known = table()
    listens = run(arrive(known, "one", task="listen", num_rows=100))
    speaks = arrive(known, "two", num_rows=100)
    assert shares(known, generation=0.1, understanding=0.1).full([speaks], listens) == []


def test_full_kv_share_skips_only_its_own_class() -> None:
    known = table()
    running = run(arrive(known, "r", task="listen", num_rows=30))
    waiting = [
        arrive(known, "big", task="listen", num_rows=30),
        arrive(known, "small", task="listen", num_rows=1),
        arrive(known, "speaks"),
    ]
    full = shares(known, understanding=0.8, generation=0.8).full(waiting, running)
    assert [request.request_id for request in full] == ["big", "small"], "within a class the order stays"


def test_request_with_a_running_cfg_partner_is_never_skipped() -> None:
    known = table()
    one, half = pair(known, "one", num_rows=100)
    run(one)
    assert shares(known, generation=0.1).full([half], [one]) == []
    assert shares(known, generation=0.1).has_room(half, [one])
