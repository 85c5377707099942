"""Slots are given to callers in turn, and one is reserved for the next caller."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stretto_gateway.admission import BURST_S, CALLER, EVENT_WORK, MAX_EVENT_WORK, Admission, EventPace, work_of
from stretto_gateway.answers import ApiError
from tests.patience import PATIENCE_S

WAITS = list[float]()


class Guest:
    """Holder of a slot from admission until it is released by the test."""

    def __init__(self, admission: Admission, caller: str):
        self.is_in, self._go = False, asyncio.Event()
        with asking(caller):
            self._task = asyncio.ensure_future(self._stay(admission))

    async def _stay(self, admission: Admission) -> None:
        async with admission.slot():
            self.is_in = True
            await self._go.wait()
        self.is_in = False

    async def leave(self) -> None:
        self._go.set()
        await self._task

    async def give_up(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        self.is_in = False


@contextmanager
def asking(caller: str) -> Iterator[None]:
    token = CALLER.set(caller)
    yield
    CALLER.reset(token)


async def come(admission: Admission, callers: str) -> list[Guest]:
    """Create a guest for each letter; wait until each has a slot or is queued."""
    guests = [Guest(admission, caller) for caller in callers]
    await settled()
    return guests


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_each_caller_leaves_half_of_the_remaining_capacity() -> None:
    admission = Admission(8, 16, WAITS.append)
    guests = await come(admission, "aaaaaa" + "bbbb" + "cc")
    assert [guest.is_in for guest in guests] == [*[True] * 4, *[False] * 2, *[True] * 2, *[False] * 2, True, False]
    assert (admission.num_active, admission.num_waiting) == (7, 5)
    assert (await come(admission, "d"))[0].is_in
    for guest in guests:
        await guest.give_up()


async def test_each_admission_wait_is_recorded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, waits = 0.0, list[float]()
    monkeypatch.setattr("stretto_gateway.admission.time", SimpleNamespace(monotonic=lambda: now_s))
    admission = Admission(1, 4, waits.append)
    first, second, third = await come(admission, "abc")
    now_s = 3.0
    await third.give_up()
    await first.leave()
    await settled()
    assert (second.is_in, waits) == (True, [0.0, 3.0])
    await second.leave()


async def test_admission_is_fifo_among_eligible_callers() -> None:
    admission = Admission(2, 16, WAITS.append)
    first, second, other, third = await come(admission, "aaba")
    assert [guest.is_in for guest in (first, second, other, third)] == [True, False, True, False]
    await other.leave()
    assert not second.is_in, "half of the places are a's already"
    await first.leave()
    await settled()
    assert (second.is_in, third.is_in) == (True, False)
    await second.leave()
    await settled()
    assert third.is_in
    await third.leave()
    assert (admission.num_active, admission.num_waiting) == (0, 0)


async def test_one_caller_cannot_fill_the_queue() -> None:
    admission = Admission(1, 4, WAITS.append)
    guests = await come(admission, "aaa")
    assert (admission.num_active, admission.num_waiting) == (1, 2)
    with asking("a"), pytest.raises(ApiError, match="2 requests are waiting already, 2 of them yours") as raised:
        async with admission.slot():
            pass
    assert raised.value.response().headers["retry-after"] == "1"
    (other,) = await come(admission, "b")
    await guests[0].leave()
    await guests[1].give_up()
    await settled()
    assert other.is_in
    await other.leave()
    await guests[2].leave()
    assert (admission.num_active, admission.num_waiting) == (0, 0)


async def test_slot_granted_to_a_cancelled_waiter_passes_to_the_next() -> None:
    admission = Admission(1, 4, WAITS.append)
    first, second, third = await come(admission, "abc")
    leaving = asyncio.ensure_future(first.leave())
    async with asyncio.timeout(PATIENCE_S):
        while admission.num_waiting == 2:
            await asyncio.sleep(0)
    await second.give_up()
    await leaving
    await settled()
    assert (third.is_in, admission.num_active) == (True, 1)
    await third.leave()


async def test_callers_who_wait_have_turns() -> None:
    """A caller with many requests in the queue delays another one by a single request."""
    admission = Admission(1, 32, WAITS.append)
    guests = await come(admission, "aaaaaab")
    *first, other = guests
    assert [guest.is_in for guest in guests] == [True, *[False] * 6]
    await first[0].leave()
    await settled()
    assert first[1].is_in
    await first[1].leave()
    await settled()
    assert other.is_in
    await other.leave()
    for guest in first[2:]:
        await settled()
        await guest.leave()
    assert (admission.num_active, admission.num_waiting) == (0, 0)


@pytest.mark.slow
@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 0.02), st.integers(EVENT_WORK, 200_000)), max_size=60))
def test_work_of_a_callers_events_is_paced(events: list[tuple[str, float, int]]) -> None:
    pace = EventPace()
    now = 0.0
    begun: dict[str, list[tuple[float, int]]] = {"a": [], "b": []}
    for caller, gap_s, work in events:
        now += gap_s
        begun[caller].append((now + pace.delay_s(caller, work, now), work))
    for of_caller in begun.values():
        for begin, (begins_at, _) in enumerate(of_caller):
            for end in range(begin, len(of_caller)):
                total = sum(work for _, work in of_caller[begin:end])
                ends_at = of_caller[end][0]
                assert total <= MAX_EVENT_WORK * (ends_at - begins_at + BURST_S + 1e-9)


def test_other_callers_and_a_small_burst_wait_for_nothing() -> None:
    pace = EventPace()
    num_small = int(BURST_S * MAX_EVENT_WORK) // EVENT_WORK
    assert not any(pace.delay_s("a", EVENT_WORK, 5.0) for _ in range(num_small))
    assert pace.delay_s("a", 10 * MAX_EVENT_WORK, 5.0) <= BURST_S
    assert pace.delay_s("a", EVENT_WORK, 5.0) == pytest.approx(10, abs=BURST_S)
    assert not pace.delay_s("b", EVENT_WORK, 5.0)
    assert not pace.delay_s("c", EVENT_WORK, 15.1)
    assert list(pace._free_at) == ["c"], "callers without work that waits are forgotten"


def test_work_of_an_event_counts_values_and_bytes() -> None:
    assert work_of('{"a":[{},{}]}') == EVENT_WORK + 7
    assert work_of(b"a" * 160) == EVENT_WORK + 10
