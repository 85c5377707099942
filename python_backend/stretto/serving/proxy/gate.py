"""Gate that is closed while models restart, because Triton would never answer requests then."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
AGAIN = "a part of the server has ended and is being started again; try again"


class Restarting(Exception):
    """A call was ended or refused because a model is being restarted."""

    def __init__(self) -> None:
        super().__init__(f"unavailable: {AGAIN}")


class Gate:
    """Gate for calls; closing it ends calls in flight.

    Attributes:
        give_up: Reports a model whose stub Triton considers dead to the launcher.
        is_shut: True while the gate is closed.
    """

    def __init__(self, give_up: Callable[[str], None] = lambda _: None) -> None:
        self.give_up = give_up
        self.is_shut = self._spares_answered = False
        self._calls: dict[asyncio.Task[Any], Callable[[], bool]] = {}
        self._ended: set[asyncio.Task[Any]] = set()

    async def guard(self, call: Coroutine[Any, Any, T], is_answered: Callable[[], bool] = lambda: False) -> T:
        """Await a call, and cancel it if the gate closes.

        Args:
            call: The call.
            is_answered: Returns True if Triton has begun to answer all requests of the call.

        Raises:
            Restarting: The gate is closed for this call, or was closed while the call was in flight.
        """
        if self.is_shut and not (self._spares_answered and is_answered()):
            call.close()
            raise Restarting
        task = asyncio.create_task(call)
        self._calls[task] = is_answered
        try:
            return await task
        except asyncio.CancelledError:
            if task not in self._ended:
                raise
            raise Restarting from None
        finally:
            del self._calls[task]
            self._ended.discard(task)

    def open(self) -> None:
        """Let calls pass."""
        self.is_shut = False

    def shut(self, spares_answered: bool) -> None:
        """Refuse new calls and end those in flight.

        Args:
            spares_answered: True to exempt calls that Triton has begun to answer.
        """
        self.is_shut, self._spares_answered = True, spares_answered
        for task, is_answered in self._calls.items():
            if not (spares_answered and is_answered()):
                self._ended.add(task)
                task.cancel()
