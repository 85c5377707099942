"""Threads for work on callers' texts and audio; callers get equal shares of the time."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
# Caller of the current task, in a program that serves several.
CALLER: ContextVar[str] = ContextVar("CALLER", default="")


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """Call that waits for a thread; `done` gets its result or exception."""

    call: Callable[[], Any]
    done: Future[Any]


class Turns:
    """Threads that run jobs of callers, who share the threads' time equally.

    The next job is one of the caller that has used the least time (start-time fair queueing). A caller therefore waits
    for at most one job in each thread, even if another caller has many. A job that has begun runs to its end, which is
    why long work is divided into several jobs. A job whose task has been cancelled does not begin.

    Args:
        clock_s: Function that returns the time that the current thread has used, in seconds.
    """

    def __init__(self, num_threads: int, name: str, clock_s: Callable[[], float] = time.thread_time):
        self._threads = ThreadPoolExecutor(num_threads, name)
        self._clock_s = clock_s
        self._mutex = threading.Lock()
        self._waiting: dict[str, deque[Job]] = {}
        self._num_running: dict[str, int] = {}
        self._used_s: dict[str, float] = {}

    async def run(
        self, call: Callable[Arguments, Result], /, *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result:
        """Run a job of the current caller (`CALLER`) in one of the threads, and return its result."""
        job = Job(lambda: call(*args, **kwargs), Future())
        with self._mutex:
            self._enter(CALLER.get()).append(job)
        self._threads.submit(self._run_next)
        result: Result = await asyncio.wrap_future(job.done)  # which cancels the job if this task is cancelled
        return result

    def close(self) -> None:
        """Stop the threads; jobs that have not begun are dropped."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _enter(self, caller: str) -> deque[Job]:
        """Return the caller's waiting jobs. A new caller begins with the least time that a busy caller has used."""
        if caller not in self._waiting:
            busy = {*self._waiting, *self._num_running}
            least_s = min((self._used_s[other] for other in busy), default=0.0)
            self._used_s = {
                other: used_s for other, used_s in self._used_s.items() if other in busy or used_s > least_s
            }
            if not busy:
                self._used_s.clear()
            self._used_s.setdefault(caller, least_s)
            self._waiting[caller] = deque()
        return self._waiting[caller]

    def _run_next(self) -> None:
        with self._mutex:
            caller = min(self._waiting, key=self._used_s.__getitem__)
            jobs = self._waiting[caller]
            job = jobs.popleft()
            if not jobs:
                del self._waiting[caller]
            self._num_running[caller] = self._num_running.get(caller, 0) + 1
        begun_s = self._clock_s()
        if job.done.set_running_or_notify_cancel():
            try:
                job.done.set_result(job.call())
            except BaseException as error:
                job.done.set_exception(error)
        with self._mutex:
            self._used_s[caller] += self._clock_s() - begun_s
            self._num_running[caller] -= 1
            if not self._num_running[caller]:
                del self._num_running[caller]
