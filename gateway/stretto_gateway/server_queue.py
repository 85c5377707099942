"""Queue of requests that the server has refused because it was full."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from stretto_client.tries import ROOM_S
from stretto_contract.limits import FairLimit
from stretto_gateway.admission import CALLER
from stretto_gateway.answers import ApiError
from stretto_gateway.config import Limits


@dataclass(slots=True, eq=False)
class QueuedRequest:
    """Request that waits for the speech server to have capacity.

    Attributes:
        is_later: True for a later clause of a text that has been started.
        may_try: Event that is set when the request may be sent again.
    """

    caller: str
    is_later: bool
    may_try: asyncio.Event = field(default_factory=asyncio.Event)


class ServerQueue:
    """Queue of requests that the server has refused, in which callers take turns.

    One request at a time is sent again: the first request of the caller that has waited longest for its turn. If the
    server still refuses it, the next caller has its turn, because the server's limits are per caller. After all callers
    have had a turn, the next round begins when a reply ends, or after ROOM_S. Requests of a caller keep their order,
    except that clauses of texts in progress come first.

    Callers share the queue fairly (`FairLimit`), so that others can always enter it.
    """

    def __init__(self, limits: Limits):
        self._limits = limits
        self._waiting: list[QueuedRequest] = []
        self._shares = FairLimit(limits.max_waiting)
        self._turns: dict[str, int] = {}  # number of the last turn of each waiting caller
        self._num_turns = 0
        self._trying: QueuedRequest | None = None
        self._refused: set[str] = set()  # callers that have had their turn in this round
        self._timer: asyncio.TimerHandle | None = None

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def first_tries(self) -> AsyncGenerator[None, None]:
        """Return a generator that yields each time that a new request of the caller (`CALLER`) may be sent.

        The first time is at once, unless other requests of the caller are queued. The generator raises ApiError 429 if
        the queue is full, or if the server has been full for too long.
        """
        caller = CALLER.get()
        return self._tries(
            QueuedRequest(caller, is_later=False), all(waiter.caller != caller for waiter in self._waiting)
        )

    def later_tries(self) -> AsyncGenerator[None, None]:
        """Return a generator like `first_tries`, for a later clause of a text.

        The first time is at once, unless a request of another caller or another later clause of this one is queued.
        Without this wait, a caller with texts in progress would take all capacity that becomes free.
        """
        caller = CALLER.get()
        is_next = all(waiter.caller == caller and not waiter.is_later for waiter in self._waiting)
        return self._tries(QueuedRequest(caller, is_later=True), is_next)

    async def _tries(self, waiter: QueuedRequest, is_next: bool) -> AsyncGenerator[None, None]:
        if is_next:
            yield
        limit_s = self._limits.later_full_s if waiter.is_later else self._limits.full_s
        with self._queued(waiter, was_refused=is_next):
            deadline_s = asyncio.get_running_loop().time() + limit_s
            while True:
                try:
                    async with asyncio.timeout_at(deadline_s):
                        await waiter.may_try.wait()
                except TimeoutError:
                    message = f"the speech server was at capacity for {limit_s:g} s; try again"
                    raise ApiError(429, message, code="server_full") from None
                yield
                waiter.may_try.clear()
                self._refused.add(waiter.caller)
                self._end_turn(waiter)

    @contextmanager
    def _queued(self, waiter: QueuedRequest, was_refused: bool) -> Iterator[None]:
        if not waiter.is_later and not self._shares.has_free(waiter.caller):
            num_held = self._shares.held_by(waiter.caller)
            limit = self._shares.limit
            detail = f"{self.num_waiting} requests are waiting for the speech server, {num_held} of them"
            message = f"{detail} yours (at most {limit} in all, half for one caller); try again"
            raise ApiError(429, message, code="server_full")
        position = len(self._waiting)
        if waiter.is_later:  # after the other clauses of texts in progress
            position = sum(other.is_later for other in self._waiting)
        self._waiting.insert(position, waiter)
        self._shares.acquire(waiter.caller)
        if was_refused:
            self._refused.add(waiter.caller)
        elif waiter.is_later:  # the capacity that the previous clause has released is for another caller
            self._refused.clear()
            self._note_turn(waiter.caller)
        try:
            self._go_on()
            yield
        finally:
            self._waiting.remove(waiter)
            self._shares.release(waiter.caller)
            if not self._shares.held_by(waiter.caller):
                self._turns.pop(waiter.caller, None)  # drop empty entries: the number of callers is unbounded
            self._end_turn(waiter)

    def note_end(self) -> None:
        """Begin a new round, because a reply has ended and the server may have capacity."""
        self._refused.clear()
        self._go_on()

    def _end_turn(self, waiter: QueuedRequest) -> None:
        if self._trying is waiter:
            self._trying = None
        self._go_on()

    def _go_on(self) -> None:
        """Give the next caller its turn, unless a request is being tried."""
        if self._trying is not None:
            return
        firsts: dict[str, QueuedRequest] = {}
        for waiter in self._waiting:
            if waiter.caller not in self._refused and not waiter.may_try.is_set():
                firsts.setdefault(waiter.caller, waiter)
        if self._timer is not None and (firsts or not self._waiting):
            self._timer.cancel()
            self._timer = None
        if self._timer is None and self._waiting:
            self._timer = asyncio.get_running_loop().call_later(ROOM_S, self._begin_round)
        if firsts:
            caller = min(firsts, key=lambda name: self._turns.get(name, 0))
            self._note_turn(caller)
            self._trying = firsts[caller]
            self._trying.may_try.set()

    def _note_turn(self, caller: str) -> None:
        self._num_turns += 1
        self._turns[caller] = self._num_turns

    def _begin_round(self) -> None:
        """Begin a new round, even if the request that is being tried has not been answered."""
        self._timer = self._trying = None
        self.note_end()
