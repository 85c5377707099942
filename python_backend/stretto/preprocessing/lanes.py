"""Queues of requests with audio: one queue per class of length, each fair among client hosts."""

import threading
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from stretto.errors import Closing, Overloaded
from stretto.limits import FairLimit
from stretto.preprocessing.audio import AudioReader

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """Thread-safe queue that serves client hosts in turn, so that one host cannot delay all others."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[Item]] = {}  # in the order in which hosts are served
        self._changed = threading.Condition()
        self._is_closed = False

    def put(self, host: str, item: Item) -> None:
        """Append an item of `host`."""
        with self._changed:
            self._waiting.setdefault(host, deque()).append(item)
            self._changed.notify()

    def get(self) -> Item | None:
        """Remove and return the next item; wait for one if necessary. None once the queue is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closed)
            if not self._waiting:
                return None
            host = next(iter(self._waiting))
            items = self._waiting.pop(host)
            item = items.popleft()
            if items:
                self._waiting[host] = items
            return item

    def close(self) -> None:
        """Reject new items from now on."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()


SHORT_BYTES = 1 << 20  # requests with at most this much audio do not wait for larger ones
LONG_NICENESS = 10  # nice level of long recordings, so that active streams have priority


class Process(Protocol):
    """Part of AudioProcess's interface that a lane uses."""

    read: AudioReader

    def close(self) -> None:
        """End the process."""
        ...


@dataclass(frozen=True, slots=True)
class Load:
    """Amount of work in the lanes, or its limit.

    Attributes:
        num_bytes: Size of the audio in bytes.
        num_requests: Number of requests.
    """

    num_bytes: int
    num_requests: int


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """Queued request.

    Attributes:
        host: Host of the client.
        num_bytes: Size of the audio in bytes.
        run: Function that processes the request with the lane's audio reader.
        refuse: Function that is called with an error if the job will not be run.
    """

    host: str
    num_bytes: int
    run: Callable[[AudioReader], None]
    refuse: Callable[[Exception], None]


class AudioLanes:
    """Threads with an audio process each. A submitted job is refused, or runs once."""

    def __init__(self, open_process: Callable[[int], Process], num_long: int, limit: Load) -> None:
        """Start the lanes.

        Args:
            open_process: Function that starts an audio process with a nice level.
            num_long: Number of lanes for long recordings.
            limit: Maximum bytes of audio and number of requests, waiting or running, in all lanes together.
        """
        self._bytes, self._requests = FairLimit(limit.num_bytes), FairLimit(limit.num_requests)
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
        """Queue a job.

        Args:
            num_bytes: Size of the audio that `run` keeps in memory, in bytes.
            run: Function that is called in a lane with the lane's audio reader.
            refuse: Function that is called with an error if the job will not be run.
            host: Host of the client.

        Raises:
            Overloaded: A limit, or the host's fair share of it, is reached.
            Closing: The lanes are closed.
        """
        job = Job(host, num_bytes, run, refuse)
        with self._mutex:
            self._check(host, num_bytes)
            self._bytes.acquire(host, num_bytes)
            self._requests.acquire(host)
            (self._short if num_bytes <= SHORT_BYTES else self._long).put(host, job)

    def close(self) -> None:
        """Finish running jobs, refuse waiting ones, and end the processes."""
        with self._mutex:
            self.is_closed = True
        for queue, _ in self._threads:
            queue.close()
        for _, thread in self._threads:
            thread.join()

    @property
    def held(self) -> Load:
        """Audio and requests of all hosts that are queued or running."""
        return Load(self._bytes.held, self._requests.held)

    def _check(self, host: str, num_bytes: int) -> None:
        if self.is_closed:
            raise Closing("server is stopping")
        if not self._bytes.has_free(host, num_bytes):
            held = f"{self._bytes.held} bytes are being processed, {self._bytes.held_by(host)} of them from this host"
            raise Overloaded(f"audio: {held}, of at most {self._bytes.limit}; this request has {num_bytes}; try again")
        if not self._requests.has_free(host):
            own = self._requests.held_by(host)
            held = f"{self._requests.held} requests are being processed, {own} of them from this host"
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
                traceback.print_exc()  # a bug, or the server has stopped; the lane must continue
            finally:
                del job  # release its audio before waiting for the next job
                with self._mutex:
                    self._bytes.release(host, num_bytes)
                    self._requests.release(host)
        process.close()
