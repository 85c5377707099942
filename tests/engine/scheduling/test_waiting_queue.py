"""Waiting requests keep their queue position unless they are moved deliberately."""

from vllm.v1.request import Request, RequestStatus

from stretto.engine.scheduling.held_replies import put_first, put_first_after, skipping
from tests.engine.scheduling.tables import arrive, queue, table


def requests(names: str) -> dict[str, Request]:
    known = table()
    return {name: arrive(known, name) for name in names}


def names(waiting: object) -> str:
    return "".join(request.request_id for request in waiting)


def test_those_put_first_keep_their_order() -> None:
    some = requests("abcde")
    waiting = queue(*some.values())
    put_first(waiting, some["d"], some["b"])
    assert names(waiting) == "dbace"
    put_first(waiting)
    assert names(waiting) == "dbace"


def test_a_half_goes_ahead_of_all_while_its_partner_runs() -> None:
    some = requests("abcp")
    some["p"].status = RequestStatus.RUNNING
    waiting = queue(some["a"], some["b"], some["c"])
    put_first_after(waiting, some["c"], some["p"])
    assert names(waiting) == "cab"


def test_a_half_goes_behind_a_partner_that_was_preempted() -> None:
    some = requests("abcp")
    some["p"].status = RequestStatus.PREEMPTED
    waiting = queue(some["a"], some["p"], some["b"], some["c"])
    put_first_after(waiting, some["c"], some["p"])
    assert names(waiting) == "apcb"


def test_those_passed_over_are_not_served_and_keep_their_places() -> None:
    some = requests("abcdenm")
    waiting = queue(*(some[name] for name in "abcde"))
    with skipping(waiting, [some["b"], some["d"]]):
        assert names(waiting) == "ace"
        waiting.pop_request()  # `a` is admitted
        waiting.prepend_request(some["n"])  # one is preempted
    assert names(waiting) == "nbcde"


def test_without_anybody_to_pass_over_the_queue_is_left_alone() -> None:
    some = requests("abn")
    waiting = queue(some["a"], some["b"])
    with skipping(waiting, []):
        waiting.add_request(some["n"])
    assert names(waiting) == "abn"
