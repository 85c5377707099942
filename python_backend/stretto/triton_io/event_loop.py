"""asyncio event loop in a thread of its own."""

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from stretto.triton_io import stub

T = TypeVar("T")


class EventLoop:
    """Runner of coroutines for threads without a loop."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Start the coroutine and return at once; errors go to asyncio's exception handler."""
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).add_done_callback(self._hear)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run the coroutine and return its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def close(self) -> None:
        """Cancel running coroutines, let them clean up, and end the thread."""
        self._is_closing = True
        self.run(self._cancel_others())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self) -> None:
        try:
            self._loop.run_forever()
        finally:
            if not self._is_closing:
                stub.end(f"the event loop of the {self._thread.name} has ended")

    def _hear(self, done: "Future[None]") -> None:
        if not done.cancelled() and (error := done.exception()) is not None:
            self._loop.call_exception_handler({"message": "a coroutine failed", "exception": error})

    async def _cancel_others(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
