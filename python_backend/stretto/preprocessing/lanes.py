"""Where requests with audio wait, apart from those with text: one lane for short recordings, others for long ones.

A lane is a thread with a process that reads audio. What waits is bounded, in bytes and in number, and is refused
beyond: the caller of `submit` is never held up. In each lane hosts take turns, and of both bounds a host has its share:
so nobody keeps others' recordings out, or waiting behind all of its own.
"""

import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from stretto.errors import Closing, Overloaded
from stretto.preprocessing.audio import AudioReader
from stretto.preprocessing.fair_queue import FairQueue
from stretto.shares import Shares

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


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """Work of a lane, for a host: `run` with its reader, or `refuse` where it will not be run."""

    host: str
    num_bytes: int
    run: Callable[[AudioReader], None]
    refuse: Callable[[Exception], None]


class AudioLanes:
    """Runs jobs that read audio, each once, or refuses them. num_long: lanes for long recordings."""

    def __init__(self, open_process: Callable[[int], Process], num_long: int, limit: Load) -> None:
        self._bytes, self._requests = Shares(limit.num_bytes), Shares(limit.num_requests)
        self._mutex, self.is_closed = threading.Lock(), False
        self._short, self._long = FairQueue[Job](), FairQueue[Job]()
        self._threads = [self._lane(self._short, open_process(0))]
        self._threads += [self._lane(self._long, open_process(LONG_NICENESS)) for _ in range(num_long)]

    def submit(
        self,
        num_bytes: int,
        run: Callable[[AudioReader], None],
        refuse: Callable[[Exception], None],
        host: str = "",
    ) -> None:
        """Have `run` called in a lane, for `host`; Overloaded where the lanes hold too much, or too much of it.

        What `run` holds may be large.
        """
        job = Job(host, num_bytes, run, refuse)
        with self._mutex:
            self._check(host, num_bytes)
            self._bytes.take(host, num_bytes)
            self._requests.take(host)
            (self._short if num_bytes <= SHORT_BYTES else self._long).put(host, job)

    def close(self) -> None:
        """Finish what runs, refuse what waits, and end the processes."""
        with self._mutex:
            self.is_closed = True
        for queue, _ in self._threads:
            queue.close()
        for _, thread in self._threads:
            thread.join()

    @property
    def held(self) -> Load:
        """What waits or is being run, of all hosts."""
        return Load(self._bytes.taken, self._requests.taken)

    def _check(self, host: str, num_bytes: int) -> None:
        if self.is_closed:
            raise Closing("server is stopping")
        if not self._bytes.is_left(host, num_bytes):
            held = f"{self._bytes.taken} bytes are in work, {self._bytes.taken_by(host)} of this host"
            raise Overloaded(f"audio: {held}, of at most {self._bytes.limit}; this request has {num_bytes}; try again")
        if not self._requests.is_left(host):
            held = f"{self._requests.taken} requests are in work, {self._requests.taken_by(host)} of this host"
            raise Overloaded(f"audio: {held}, of at most {self._requests.limit}; try again")

    def _lane(self, queue: FairQueue[Job], process: Process) -> tuple[FairQueue[Job], threading.Thread]:
        thread = threading.Thread(target=self._work, args=(queue, process), daemon=True, name="audio lane")
        thread.start()
        return queue, thread

    def _work(self, queue: FairQueue[Job], process: Process) -> None:
        while (job := queue.get()) is not None:
            host, num_bytes = job.host, job.num_bytes
            try:
                if self.is_closed:
                    job.refuse(Closing("server is stopping"))
                else:
                    job.run(process.read)
            except Exception:
                traceback.print_exc()  # a bug, or the server is gone; either way others wait behind it
            finally:
                del job  # and its audio, which must not stay until the next
                with self._mutex:
                    self._bytes.give_back(host, num_bytes)
                    self._requests.give_back(host)
        process.close()
