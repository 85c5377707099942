"""Lock that lets requests use the encoders of recordings one at a time.

Between two chunks of a long recording, waiting requests encode first.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from stretto.errors import Cancelled

IsCancelled = Callable[[], bool]
_turns: ContextVar["EncodingTurns | None"] = ContextVar("encoding_turns", default=None)
_is_cancelled: ContextVar[IsCancelled] = ContextVar("is_cancelled", default=lambda: False)


class EncodingTurns:
    """Lock that requests acquire in the order in which they ask for it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._num_asked = 0
        self._num_released = 0

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Hold the turn in the `with` block, except while `pass_turn` waits."""
        self.acquire()
        token = _turns.set(self)
        try:
            yield
        finally:
            _turns.reset(token)
            self.release()

    def acquire(self) -> None:
        with self._changed:
            number = self._num_asked
            self._num_asked += 1
            self._changed.wait_for(lambda: self._num_released == number)

    def release(self) -> None:
        """Give the turn to the request that has waited longest."""
        with self._changed:
            self._num_released += 1
            self._changed.notify_all()


@contextmanager
def cancelled_by(is_cancelled: IsCancelled) -> Iterator[None]:
    """Within the `with` block, stop encoding once `is_cancelled` returns True."""
    token = _is_cancelled.set(is_cancelled)
    try:
        yield
    finally:
        _is_cancelled.reset(token)


def pass_turn() -> None:
    """Let waiting requests encode first; raise Cancelled if the client of this request has disconnected."""
    if _is_cancelled.get()():
        raise Cancelled("the client has disconnected")
    turns = _turns.get()
    if turns is not None:
        turns.release()
        turns.acquire()
