"""Where requests with audio wait, apart from those with text: one lane for short recordings, others for long ones.

A lane is a thread with a process that reads audio. What waits is bounded, in bytes and in number, and is refused
beyond: the caller of `submit` is never held up.
"""

import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Protocol

from stretto.errors import Overloaded
from stretto.preprocessing.audio import AudioReader

SHORT_BYTES = 1 << 20  # a recording up to here does not wait behind longer ones
LONG_NICENESS = 10  # what takes long leaves the processor to speech that is being made


class Process(Protocol):
    """What a lane needs of an AudioProcess."""

    read: AudioReader

    def close(self) -> None:
        """End it."""
        ...


@dataclass(frozen=True, slots=True)
class Load:
    """What lanes hold: bytes of audio and requests; or how much of it they may."""

    num_bytes: int
    num_requests: int

    def __add__(self, other: "Load") -> "Load":
        return Load(self.num_bytes + other.num_bytes, self.num_requests + other.num_requests)

    def __sub__(self, other: "Load") -> "Load":
        return Load(self.num_bytes - other.num_bytes, self.num_requests - other.num_requests)


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """Work of a lane: `run` with its reader, or `refuse` where it will not be run."""

    load: Load
    run: Callable[[AudioReader], None]
    refuse: Callable[[Exception], None]


class AudioLanes:
    """Runs jobs that read audio, each once, or refuses them. num_long: lanes for long recordings."""

    def __init__(self, open_process: Callable[[int], Process], num_long: int, limit: Load) -> None:
        self.limit = limit
        self._held, self._mutex, self.is_closed = Load(0, 0), threading.Lock(), False
        self._short: SimpleQueue[Job | None] = SimpleQueue()
        self._long: SimpleQueue[Job | None] = SimpleQueue()
        self._threads = [self._lane(self._short, open_process(0))]
        self._threads += [self._lane(self._long, open_process(LONG_NICENESS)) for _ in range(num_long)]

    def submit(self, num_bytes: int, run: Callable[[AudioReader], None], refuse: Callable[[Exception], None]) -> None:
        """Have `run` called in a lane; Overloaded where the lanes hold too much. What `run` holds may be large."""
        job = Job(Load(num_bytes, 1), run, refuse)
        with self._mutex:
            self._check(job.load)
            self._held += job.load
            (self._short if num_bytes <= SHORT_BYTES else self._long).put(job)

    def close(self) -> None:
        """Finish what runs, refuse what waits, and end the processes."""
        with self._mutex:
            self.is_closed = True
        for queue, _ in self._threads:
            queue.put(None)
        for _, thread in self._threads:
            thread.join()

    def _check(self, load: Load) -> None:
        if self.is_closed:
            raise Overloaded("server is stopping")
        total = self._held + load
        if total.num_bytes > self.limit.num_bytes:
            raise Overloaded(
                f"audio: {self._held.num_bytes} bytes are in work, of at most {self.limit.num_bytes}; "
                f"this request has {load.num_bytes}"
            )
        if total.num_requests > self.limit.num_requests:
            raise Overloaded(f"audio: {self._held.num_requests} requests are in work, which is the limit")

    def _lane(
        self, queue: "SimpleQueue[Job | None]", process: Process
    ) -> "tuple[SimpleQueue[Job | None], threading.Thread]":
        thread = threading.Thread(target=self._work, args=(queue, process), daemon=True, name="audio lane")
        thread.start()
        return queue, thread

    def _work(self, queue: "SimpleQueue[Job | None]", process: Process) -> None:
        while (job := queue.get()) is not None:
            load = job.load
            try:
                if self.is_closed:
                    job.refuse(Overloaded("server is stopping"))
                else:
                    job.run(process.read)
            except Exception:
                traceback.print_exc()  # a bug, or the server is gone; either way others wait behind it
            finally:
                del job  # and its audio, which must not stay until the next
                with self._mutex:
                    self._held -= load
        process.close()
