"""Queues of requests with audio: fair among hosts, in lanes by length."""

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
    """Thread-safe queue that serves hosts in turn, so that one host cannot delay all others."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[Item]] = {}  # in order of turns; the next host is first
        self._changed = threading.Condition()
        self._is_closed = False

    def put(self, host: str, item: Item) -> None:
        """Add an item of `host`."""
        with self._changed:
            self._waiting.setdefault(host, deque()).append(item)
            self._changed.notify()

    def get(self) -> Item | None:
        """Return the next item, waiting for one if necessary; None once the queue is closed and empty."""
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
        """Close the queue to new items."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()


SHORT_BYTES = 1 << 20  # recordings up to this size do not wait for longer ones
LONG_NICENESS = 10  # long recordings yield the CPU to active streams


class Process(Protocol):
    """Interface of AudioProcess that a lane uses."""

    read: AudioReader

    def close(self) -> None:
        """End the process."""
        ...


@dataclass(frozen=True, slots=True)
class Load:
    """Content of the lanes, or their limit.

    Attributes:
        num_bytes: Bytes of audio.
        num_requests: Number of requests.
    """

    num_bytes: int
    num_requests: int


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """A request in a lane.

    Attributes:
        host: Host of the client.
        num_bytes: Bytes of audio.
        run: Processes the request with the lane's reader.
        refuse: Called with an error if the job will not be run.
    """

    host: str
    num_bytes: int
    run: Callable[[AudioReader], None]
    refuse: Callable[[Exception], None]


class AudioLanes:
    """Lanes that run each submitted job once, or refuse it."""

    def __init__(self, open_process: Callable[[int], Process], num_long: int, limit: Load) -> None:
        """Start the lanes.

        Args:
            open_process: Starts an audio process with a nice level.
            num_long: Number of lanes for long recordings.
            limit: Limit of all jobs together.
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
            num_bytes: Bytes of audio that `run` holds.
            run: Called in a lane with its reader; may hold large data.
            refuse: Called with an error if the job will not be run.
            host: Host of the client.

        Raises:
            Overloaded: A bound, or the host's fair share of one, is reached.
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
        """Audio and requests of all hosts that wait or run."""
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
                traceback.print_exc()  # a bug, or the server has ended; the lane must continue
            finally:
                del job  # release its audio before waiting for the next job
                with self._mutex:
                    self._bytes.release(host, num_bytes)
                    self._requests.release(host)
        process.close()
