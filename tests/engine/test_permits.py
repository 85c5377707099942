"""Permits: one limit for running requests and one for waiting requests; a guided reply takes two slots.

A host with less than its share is admitted even if another one has taken all permits.
"""

from contextlib import ExitStack, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from stretto.config import EngineConfig
from stretto.engine.permits import Permits
from stretto.errors import NoCapacity


class Engine:
    """Fake engine with unfinished requests, some of which are blocked (waiting for text)."""

    def __init__(self) -> None:
        self.unfinished: set[str] = set()
        self.num_blocked = 0

    def permits(self, max_running: int = 4, max_waiting: int | None = 2) -> Permits:
        return Permits(max_running, max_waiting, self.unfinished.__contains__, lambda: self.num_blocked)


def test_admission_is_limited_to_running_plus_waiting() -> None:
    permits = Engine().permits()
    with permits.acquire("a", 2), permits.acquire("b", 2), permits.acquire("c", 1), permits.acquire("d", 1):
        assert permits.num_in_flight() == 6
        said = r"6 sequences are already in flight \(limits: 4 running, 2 waiting\), and this reply has 1; try again"
        with pytest.raises(NoCapacity, match=said), permits.acquire("e", 1):
            pass
    assert permits.num_in_flight() == 0


def test_cfg_pair_needs_two_permits() -> None:
    permits = Engine().permits()
    with permits.acquire("a", 2), permits.acquire("b", 2), permits.acquire("c", 1):
        with pytest.raises(NoCapacity), permits.acquire("pair", 2):
            pass
        with permits.acquire("single", 1):
            assert permits.num_in_flight() == 6


def test_refused_requests_take_no_permit() -> None:
    permits = Engine().permits(1, 0)
    with permits.acquire("a", 1):
        for _ in range(3):
            with pytest.raises(NoCapacity), permits.acquire("b", 1):
                pass
        assert permits.num_in_flight() == 1


def test_lone_reply_is_admitted_beyond_the_limit() -> None:
    with Engine().permits(1, 0).acquire("pair", 2):
        pass


def test_permit_is_free_once_the_engine_has_finished() -> None:
    engine = Engine()
    permits = engine.permits(1, 0)
    with permits.acquire("slow reader", 1) as permit:
        with pytest.raises(NoCapacity), permits.acquire("next", 1):  # the engine does not know of it yet
            pass
        engine.unfinished.add("slow reader")
        permit.has_begun = True
        with pytest.raises(NoCapacity), permits.acquire("next", 1):
            pass
        engine.unfinished.clear()
        with permits.acquire("next", 1):
            assert permits.num_in_flight() == 1


def test_replies_waiting_for_text_free_their_permits() -> None:
    engine = Engine()
    permits = engine.permits(2, 0)
    with permits.acquire("open", 1), permits.acquire("open too", 1):
        engine.num_blocked = 1
        with permits.acquire("next", 1), pytest.raises(NoCapacity), permits.acquire("another", 1):
            pass
        engine.num_blocked = 7  # the figure is of another moment
        assert permits.num_in_flight() == 0


def test_permits_without_a_limit_admit_all() -> None:
    permits = Engine().permits(1, None)
    with permits.acquire("a", 1), permits.acquire("b", 2), permits.acquire("c", 2):
        assert permits.num_in_flight() == 5


@pytest.mark.parametrize(("num_engines", "expected"), [(1, 7), (2, 11)])
def test_permits_scale_with_the_number_of_engines(num_engines: int, expected: int) -> None:
    ids = {"all"}
    ready = SimpleNamespace(max_num_seqs=4)
    engine = SimpleNamespace(ready=ready, num_engines=num_engines, has=ids.__contains__)
    values = SimpleNamespace(replies_without_words=0.0)
    config = EngineConfig(Path(), max_waiting=3)
    permits = Permits.from_config(config, cast(Any, engine), cast(Any, SimpleNamespace(read=lambda: values)))
    with permits.acquire("all", expected) as permit:
        permit.has_begun = True
        with pytest.raises(NoCapacity), permits.acquire("one more", 1):
            pass
        values.replies_without_words = 1.0
        with permits.acquire("in the place of one that waits for words", 1):
            pass
        values.replies_without_words = 0.0
        ids.clear()
        with permits.acquire("as all have ended", expected):
            pass


def test_late_first_frames_reduce_admissions() -> None:
    permits = Permits(8, 0, lambda _: True, lambda: 0, target_s=0.5)
    with permits.acquire("a", 2), permits.acquire("b", 2) as late:
        late.record_first_frame(1.0)
        said = (
            "4 sequences are already in flight, the maximum for a first frame within 0.5 s, and this reply has 2; try"
        )
        with pytest.raises(NoCapacity, match=said), permits.acquire("c", 2):
            pass
    for number in range(4):
        with permits.acquire("beside", 2), permits.acquire(f"in time {number}", 2) as permit:
            permit.record_first_frame(0.1)
    with permits.acquire("a", 2), permits.acquire("b", 2), permits.acquire("c", 2):
        pass


def test_late_first_frames_change_nothing_without_a_target() -> None:
    permits = Engine().permits(4, 0)
    with permits.acquire("a", 2), permits.acquire("b", 2) as late:
        late.record_first_frame(1e9)
    with permits.acquire("a", 2), permits.acquire("b", 2):
        pass


def test_streamed_text_reply_does_not_count_as_late() -> None:
    permits = Permits(8, 0, lambda _: True, lambda: 0, target_s=0.5)
    with permits.acquire("a", 2), permits.acquire("open", 2, is_timed=False) as waits:
        waits.record_first_frame(60.0)
        with permits.acquire("c", 2):
            pass


@pytest.mark.parametrize(("has_begun", "is_room"), [(False, False), (True, True)])
def test_giving_up_before_the_start_counts_as_late(has_begun: bool, is_room: bool) -> None:
    permits = Permits(8, 0, lambda _: True, lambda: 0, target_s=1e-9)
    with permits.acquire("a", 2), permits.acquire("b", 2):
        with permits.acquire("gives up", 2) as permit:
            permit.has_begun = has_begun
        with nullcontext() if is_room else pytest.raises(NoCapacity), permits.acquire("c", 2):
            pass


def test_giving_up_early_does_not_lower_the_limit() -> None:
    permits = Permits(8, 0, lambda _: True, lambda: 0, target_s=1e9)
    with permits.acquire("a", 2), permits.acquire("b", 2), permits.acquire("late", 2) as late:
        late.record_first_frame(1e10)
        for number in range(100):
            with pytest.raises(NoCapacity), permits.acquire("c", 2), permits.acquire(f"gives up {number}", 2):
                pass


def filled(permits: Permits, held: ExitStack, host: str, num_replies: int) -> None:
    """Take permits for guided replies of a host until the test's stack is closed."""
    for number in range(num_replies):
        held.enter_context(permits.acquire(f"{host}{number}", 2, host=host))


def test_host_alone_may_take_all_permits_and_no_more() -> None:
    permits = Engine().permits(64, 16)
    with ExitStack() as held:
        filled(permits, held, "flood", 40)
        said = (
            r"80 sequences are already in flight, 80 of them from this host \(limits: 64 running, 16 waiting\), "
            "and this reply has 2; try again"
        )
        with pytest.raises(NoCapacity, match=said), permits.acquire("one more", 2, host="flood"):
            pass


def test_second_host_is_admitted_up_to_half_of_the_permits_that_another_has_taken() -> None:
    permits = Engine().permits(64, 16)
    with ExitStack() as held:
        filled(permits, held, "flood", 40)
        filled(permits, held, "other", 20)
        said = "120 sequences are already in flight, 40 of them from this host"
        with pytest.raises(NoCapacity, match=said), permits.acquire("one more", 2, host="other"):
            pass
        filled(permits, held, "third", 13)  # 26 of 80 / 3
        with pytest.raises(NoCapacity, match="26 of them from this host"), permits.acquire("c", 2, host="third"):
            pass


def test_host_beyond_its_share_waits_until_all_fit_again() -> None:
    permits = Engine().permits(8, 0)
    with ExitStack() as other:
        with ExitStack() as flood:
            filled(permits, flood, "flood", 4)
            filled(permits, other, "other", 2)
        with permits.acquire("f", 2, host="flood"), permits.acquire("g", 2, host="flood"):
            with pytest.raises(NoCapacity), permits.acquire("h", 2, host="flood"):
                pass
            with pytest.raises(NoCapacity), permits.acquire("i", 2, host="other"):
                pass


def test_hosts_with_one_reply_each_share_one_limit() -> None:
    """The limit of waiting requests holds for any number of hosts that have no more than their share."""
    permits = Engine().permits(8, 2)
    with ExitStack() as held:
        for number in range(5):
            filled(permits, held, f"host {number}", 1)
        with pytest.raises(NoCapacity, match="10 sequences"), permits.acquire("next", 2, host="sixth"):
            pass


def test_share_of_the_limit_for_timely_first_frames() -> None:
    permits = Permits(8, 0, lambda _: True, lambda: 0, target_s=0.5)
    with permits.acquire("a", 2, host="flood"), permits.acquire("b", 2, host="flood") as late:
        late.record_first_frame(1.0)
        with permits.acquire("c", 2, host="other"):
            said = "6 sequences are already in flight, 2 of them from this host, the maximum for a first frame within"
            with pytest.raises(NoCapacity, match=said), permits.acquire("d", 2, host="other"):
                pass


def test_ended_replies_of_a_host_do_not_count_towards_its_share() -> None:
    engine = Engine()
    permits = engine.permits(4, 0)
    with ExitStack() as held:
        filled(permits, held, "flood", 2)
        with permits.acquire("slow reader", 2, host="other") as permit:
            permit.has_begun = True
            with permits.acquire("next", 2, host="other"):
                pass
