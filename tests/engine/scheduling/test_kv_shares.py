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


def test_without_shares_there_is_room_for_all() -> None:
    known = table()
    running = run(*pair(known, "one", num_rows=100))
    waiting = [arrive(known, "two", num_rows=100)]
    assert shares(known).full(waiting, running) == []
    assert shares(known).has_room(waiting[0], running)
    assert shares(known, understanding=0.1).has_room(waiting[0], running), "its class has no share"


@pytest.mark.parametrize(("num_rows", "has_room"), [(7, True), (8, False)])
def test_a_class_has_room_for_what_fits_beside_what_it_holds(num_rows: int, has_room: bool) -> None:
    """A CFG pair with seven rows and the next row uses four of eight blocks."""
    known = table()
    running = run(*pair(known, "one", num_rows=7))
    waiting = arrive(known, "two", num_rows=num_rows)
    assert shares(known, generation=0.8).has_room(waiting, running) == has_room


def test_the_first_of_a_class_finds_room_however_large() -> None:
    known = table()
    listens = run(arrive(known, "one", task="listen", num_rows=100))
    speaks = arrive(known, "two", num_rows=100)
    assert shares(known, generation=0.1, understanding=0.1).full([speaks], listens) == []


def test_all_of_a_full_class_are_passed_over_and_none_of_another() -> None:
    known = table()
    running = run(arrive(known, "r", task="listen", num_rows=30))
    waiting = [
        arrive(known, "big", task="listen", num_rows=30),
        arrive(known, "small", task="listen", num_rows=1),
        arrive(known, "speaks"),
    ]
    full = shares(known, understanding=0.8, generation=0.8).full(waiting, running)
    assert [request.request_id for request in full] == ["big", "small"], "within a class the order stays"


def test_a_half_whose_partner_runs_is_never_passed_over() -> None:
    known = table()
    one, half = pair(known, "one", num_rows=100)
    run(one)
    assert shares(known, generation=0.1).full([half], [one]) == []
    assert shares(known, generation=0.1).has_room(half, [one])
