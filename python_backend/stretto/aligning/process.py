"""Queue of alignment jobs, and the process that runs them. Every job is answered exactly once, within a time limit."""

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from stretto.aligning.align import TimedWord
from stretto.machine.worker_process import WorkerProcess

logger = logging.getLogger(__name__)
MAX_WAIT_S = 60.0  # maximum wait for the answer to one job, after which the process is replaced
NICENESS = 5  # decoding of active streams has priority
Answer = Callable[[list[TimedWord] | None], None]


class ProcessFailed(Exception):
    """Raised if the alignment process ended, was killed, did not answer in time, or reported an error."""


class AlignerProcess:
    """Process that aligns one recording at a time, and is restarted after a crash."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        self._process = WorkerProcess("stretto.aligning.worker", str(folder), device, niceness=NICENESS)
        self._is_closed = False

    @property
    def pid(self) -> int:
        """Pid of the running child process; it changes when a crashed process is replaced."""
        return self._process.pid

    def align(self, pcm: Sequence[NDArray[np.int16]], rate: int, text: str) -> list[TimedWord] | None:
        """Return the word times of a text in a recording, or None if the text does not fit the recording.

        Args:
            pcm: Parts of the samples, int16 [n] each.

        Raises:
            ProcessFailed: If the process reported an error, ended, or did not answer within MAX_WAIT_S. In the last two
                cases, a new process is started.
        """
        if self._is_closed:
            raise ProcessFailed("the alignment process was ended")
        self._process.start_again_if_ended()
        job = {"num_samples": sum(map(len, pcm)), "rate": rate, "text": text}
        try:
            at = 0
            for samples in pcm:
                at += self._write(np.ascontiguousarray(samples).data.cast("B"), at)
            answer = self._process.ask(job, MAX_WAIT_S)
        finally:
            self._process.release_memory()
        if answer is None:
            raise ProcessFailed("the alignment process ended, or did not answer")
        if "unfit" in answer:
            logger.info("words were not aligned: %s", answer["unfit"])
            return None
        if "failed" in answer:
            raise ProcessFailed(f"an alignment failed: {answer['failed']}")
        return [TimedWord(*word) for word in answer["words"]]

    def close(self) -> None:
        """Kill the process and release the shared memory."""
        self._process.close()

    def kill(self) -> None:
        """Kill the process; pending `align` calls in other threads, and later calls, raise ProcessFailed."""
        self._is_closed = True
        self._process.kill()

    def _write(self, data: memoryview, at: int) -> int:
        num_written = 0
        while num_written < len(data):  # the kernel may write fewer bytes than requested
            num_written += os.pwrite(self._process.memory, data[num_written:], at + num_written)
        return num_written


class WordAligner(Protocol):
    """Interface of `AlignerProcess` that the queue uses."""

    def align(self, pcm: Sequence[NDArray[np.int16]], rate: int, text: str) -> list[TimedWord] | None:
        """Return the word times, or None if the text does not fit; raise ProcessFailed on failure."""
        ...

    def kill(self) -> None:
        """Kill the process, so that a pending `align` fails."""
        ...

    def close(self) -> None:
        """End the process and release its resources."""
        ...


@dataclass(eq=False)
class AlignmentJob:
    """Recording, as parts of int16 samples, and text to align. A job is answered exactly once."""

    pcm: list[NDArray[np.int16]]
    rate: int
    text: str
    _answer: Answer | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def is_answered(self) -> bool:
        return self._answer is None

    def answer(self, words: list[TimedWord] | None) -> None:
        """Pass the answer to the caller unless the job has already been answered; free the samples in any case."""
        with self._lock:
            answer = self._answer
            self._answer = None
            self.pcm = []
        if answer is not None:
            try:
                answer(words)
            except Exception:  # an error in the caller's function; the thread must still answer the other jobs
                logger.exception("word times could not be sent")


class Timer(Protocol):
    """Interface of threading.Timer that the queue uses."""

    def start(self) -> None: ...

    def cancel(self) -> None: ...


def make_timer(seconds: float, expire: Callable[[], None]) -> Timer:
    """Return a timer that calls `expire` on a separate thread after `seconds`."""
    timer = threading.Timer(seconds, expire)
    timer.daemon = True
    return timer


class AlignmentQueue:
    """Queue of jobs for one process; a separate thread runs them in order of arrival.

    Args:
        limit_s: Time after which a job is answered without words, in seconds.
        timers: Function that creates a job's timer from `limit_s` and a callback.
    """

    def __init__(
        self,
        process: WordAligner,
        limit_s: float,
        timers: Callable[[float, Callable[[], None]], Timer] = make_timer,
    ) -> None:
        self._process = process
        self._limit_s = limit_s
        self._timers = timers
        self._changed = threading.Condition()
        self._waiting: deque[AlignmentJob] = deque()
        self._running: AlignmentJob | None = None
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="alignment", daemon=True)
        self._thread.start()

    def submit(self, pcm: list[NDArray[np.int16]], rate: int, text: str, answer: Answer) -> None:
        """Queue a text and a recording to align; call `answer` once, with word times or, after `limit_s`, with None."""
        timer: Timer | None = None

        def ended(words: list[TimedWord] | None) -> None:
            if timer is not None:
                timer.cancel()
            answer(words)

        job = AlignmentJob(pcm, rate, text, ended)
        timer = self._timers(self._limit_s, lambda: job.answer(None))
        with self._changed:
            is_closed = self._is_closed
            if not is_closed:
                self._waiting.append(job)
                self._changed.notify()
        if is_closed:
            job.answer(None)
        else:
            timer.start()

    def close(self) -> None:
        """Answer all jobs without words, and end the process."""
        with self._changed:
            self._is_closed = True
            left = [*self._waiting, *([self._running] if self._running else [])]
            self._waiting.clear()
            self._changed.notify()
        for job in left:
            job.answer(None)
        self._process.kill()
        self._thread.join()
        self._process.close()

    def _run(self) -> None:
        while (job := self._next()) is not None:
            try:
                job.answer(self._process.align(job.pcm, job.rate, job.text))
            except ProcessFailed as error:
                logger.warning("%s", error)
            except Exception:  # a bug; without this thread, no later job would be aligned
                logger.exception("an alignment failed")
            job.answer(None)
            with self._changed:
                self._running = None

    def _next(self) -> AlignmentJob | None:
        """Wait for the next unanswered job and return it, or None once the queue is closed."""
        with self._changed:
            while not self._is_closed:
                while self._waiting:
                    self._running = self._waiting.popleft()
                    if not self._running.is_answered:
                        return self._running
                self._running = None
                self._changed.wait()
            return None
