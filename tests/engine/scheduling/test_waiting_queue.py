"""Waiting requests keep their queue position unless they are moved deliberately."""

from vllm.v1.request import Request, RequestStatus

from stretto.engine.scheduling.held_replies import put_first, put_first_after, skipping
from tests.engine.scheduling.tables import arrive, queue, table


def requests(names: str) -> dict[str, Request]:
    known = table()
    return {name: arrive(known, name) for name in names}


def names(waiting: object) -> str:
    return "".join(request.request_id for request in waiting)


def test_requests_moved_to_the_front_keep_their_order() -> None:
    some = requests("abcde")
    waiting = queue(*some.values())
    put_first(waiting, some["d"], some["b"])
    assert names(waiting) == "dbace"
    put_first(waiting)
    assert names(waiting) == "dbace"


def test_request_is_queued_first_if_its_cfg_partner_runs() -> None:
    some = requests("abcp")
    some["p"].status = RequestStatus.RUNNING
    waiting = queue(some["a"], some["b"], some["c"])
    put_first_after(waiting, some["c"], some["p"])
    assert names(waiting) == "cab"


def test_request_is_queued_after_its_preempted_cfg_partner() -> None:
    some = requests("abcp")
    some["p"].status = RequestStatus.PREEMPTED
    waiting = queue(some["a"], some["p"], some["b"], some["c"])
    put_first_after(waiting, some["c"], some["p"])
    assert names(waiting) == "apcb"


def test_skipped_requests_are_not_served_and_keep_their_order() -> None:
    some = requests("abcdenm")
    waiting = queue(*(some[name] for name in "abcde"))
    with skipping(waiting, [some["b"], some["d"]]):
        assert names(waiting) == "ace"
        waiting.pop_request()  # `a` is admitted
        waiting.prepend_request(some["n"])  # one is preempted
    assert names(waiting) == "nbcde"


def test_queue_is_unchanged_if_nothing_is_skipped() -> None:
    some = requests("abn")
    waiting = queue(some["a"], some["b"])
    with skipping(waiting, []):
        waiting.add_request(some["n"])
    assert names(waiting) == "abn"
