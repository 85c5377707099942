"""The gate that the launcher shuts while a model is started again: Triton would never answer what goes through it."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
AGAIN = "a part of the server has ended and is being started again; try again"


class Restarting(Exception):
    """A call was ended, or not begun, because a model is being started again."""

    def __init__(self) -> None:
        super().__init__(f"unavailable: {AGAIN}")


class Gate:
    """Lets calls through while it is open, and ends those in flight as it shuts.

    give_up: tells the launcher of a model whose stub Triton takes for dead.
    """

    def __init__(self, give_up: Callable[[str], None] = lambda _: None) -> None:
        self.give_up = give_up
        self.is_shut = self._spares_answered = False
        self._calls: dict[asyncio.Task[Any], Callable[[], bool]] = {}
        self._ended: set[asyncio.Task[Any]] = set()

    async def guard(self, call: Coroutine[Any, Any, T], is_answered: Callable[[], bool] = lambda: False) -> T:
        """Await a call; Restarting where the gate is shut to it, or is shut meanwhile.

        is_answered: whether Triton has begun to answer all that it was asked.
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
        """Let calls through."""
        self.is_shut = False

    def shut(self, spares_answered: bool) -> None:
        """Let none through, and end those in flight; spares_answered: but for those that are being answered."""
        self.is_shut, self._spares_answered = True, spares_answered
        for task, is_answered in self._calls.items():
            if not (spares_answered and is_answered()):
                self._ended.add(task)
                task.cancel()
