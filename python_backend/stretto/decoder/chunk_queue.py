"""Queue of chunks, unanswered chunks, and the decoder's counters and stopwatch."""

import logging
import math
import threading
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from stretto.errors import Cancelled, StrettoError, incident
from stretto.records.chunk import Chunk, Event
from stretto.records.sampling import OutputForm
from stretto.streams.chunking import DecodingTime

NAMES = ("chunks", "failed", "cancelled", "expired", "late", "batches", "windows", "frames")


class Counts:
    """Thread-safe counters with the names in NAMES."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._counting = threading.Lock()
        self._largest_batch = 0
        self._decode_s = 0.0

    def add(self, name: str, by: int = 1) -> None:
        with self._counting:
            self._counts[name] += by

    def add_batch(self, num_windows: int, num_frames: int, spent_s: float) -> None:
        """Count a decoded batch, which took `spent_s`."""
        with self._counting:
            self._counts += Counter(batches=1, windows=num_windows, frames=num_windows * num_frames)
            self._largest_batch = max(self._largest_batch, num_windows)
            self._decode_s += spent_s

    def to_dict(self) -> dict[str, float]:
        """Return all counters, the largest batch size, and the total decoding time in seconds."""
        with self._counting:
            counted = {name: self._counts[name] for name in NAMES}
            return counted | {"largest_batch": self._largest_batch, "decode_s": self._decode_s}


BATCH_MEMORY = 32  # batches after which a measurement has lost about two thirds of its weight


class Stopwatch:
    """Estimate of a batch's duration from its number of frames; written by one thread, read by any.

    The time per frame of a batch is `frame_s + batch_s / frames`. Both numbers are fitted to the recent batches by
    least squares.

    Args:
        num_context_frames: Number of context frames that are decoded in each window.
        longest_s: Time for the windows of a full batch.

    Attributes:
        measured: Measured decoding time. If many windows are waiting, the time for a window is its share of a full
            batch.
    """

    def __init__(self, num_context_frames: int, longest_s: float = math.inf) -> None:
        self._num_context_frames = num_context_frames
        self._longest_s = longest_s
        self._sums = np.zeros(5)  # sums of weights, x, y, x * x and x * y; x = 1 / frames, y = seconds / frames
        self.measured = DecodingTime()

    def record(self, num_frames: int, spent_s: float) -> None:
        """Record a batch that was decoded, with the total number of frames and context frames of its windows."""
        x = 1 / num_frames
        y = spent_s / num_frames
        self._sums += np.array([1, x, y, x * x, x * y]) - self._sums / BATCH_MEMORY
        weight, x, y, xx, xy = self._sums.tolist()
        spread = weight * xx - x * x
        is_varied = spread > 0.01 * weight * xx  # else the times per batch and per frame cannot be separated
        batch_s = min(max(0.0, (weight * xy - x * y) / spread), y / x) if is_varied else 0.0
        frame_s = (y - batch_s * x) / weight * (1 + batch_s / self._longest_s)
        self.measured = DecodingTime(batch_s, self._num_context_frames * frame_s, frame_s)


class ChunkAnswer(Protocol):
    """Answer to one chunk; exactly one of `send` and `fail` is called, once.

    Attributes:
        wanted_s: Time until which the chunk was not urgent, on the decoder's clock; waiting until then does not count
            as latency. The decoder sets it before it calls `send`.
    """

    host: str
    wanted_s: float

    def send(self, pcm: np.ndarray | None, event: Event) -> None:
        """Send samples [n], float32 or int16, if there are any, together with their event."""
        ...

    def fail(self, error: Exception) -> None:
        """Send an error, which ends the utterance."""
        ...

    def is_cancelled(self) -> bool:
        """Return True if the client no longer waits for this answer."""
        ...


@dataclass(frozen=True, slots=True)
class PendingChunk:
    """Chunk that has not been decoded yet.

    Attributes:
        codes: Integers [K, T], or None for a chunk without audio.
        form: Output format; that of the first chunk applies to the whole utterance.
        on_device: Called before the answer with the GPU address of the samples, which is valid until the answer is
            sent.
        on_progress: Called during long operations, so that the language model does not time out.
        is_kept: Function that returns True while the session can be resumed; None for other utterances.
        is_answered: True if the chunk came with its samples, and these have been sent. It is then decoded only for the
            codec state.
    """

    utterance: str
    chunk: Chunk
    codes: np.ndarray | None
    reply: ChunkAnswer
    form: OutputForm = field(default_factory=OutputForm)
    on_device: Callable[[int], None] | None = None
    on_progress: Callable[[], None] | None = None
    is_kept: Callable[[], bool] | None = None
    is_answered: bool = False

    def answered(self) -> "PendingChunk":
        """Return a copy of the chunk for which nothing more is sent."""
        return replace(self, reply=Answered(self.reply.host), on_device=None, is_answered=True)


class Answered:
    """Answer that sends nothing, for a chunk whose samples have been sent."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.wanted_s = 0.0

    def send(self, pcm: np.ndarray | None, event: Event) -> None:
        """Send nothing."""

    def fail(self, error: Exception) -> None:
        """Send nothing; the utterance's next chunk fails (`DecoderSession.failure`)."""

    def is_cancelled(self) -> bool:
        return False


def check_connected(pending: PendingChunk) -> None:
    """Raise Cancelled if the client has disconnected or cancelled the request."""
    if pending.reply.is_cancelled():
        raise Cancelled("the client cancelled the request")


class ChunkQueue:
    """Thread-safe queue of chunks with many producers and one consumer; utterances take turns."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: dict[str, deque[PendingChunk]] = {}  # in serving order
        self._abandoned: list[str] = []
        self._is_closed = False

    def __len__(self) -> int:
        with self._changed:
            return sum(map(len, self._waiting.values()))

    def put(self, pending: PendingChunk) -> bool:
        """Queue a chunk; return False if the queue is closed."""
        with self._changed:
            if not self._is_closed:
                self._waiting.setdefault(pending.utterance, deque()).append(pending)
                self._changed.notify()
            return not self._is_closed

    def abandon(self, utterance: str) -> list[PendingChunk]:
        """Remove and return an utterance's queued chunks; the next `next_chunks` call reports it as abandoned."""
        with self._changed:
            self._abandoned.append(utterance)
            self._changed.notify()
            return list(self._waiting.pop(utterance, ()))

    def next_chunks(self, timeout_s: float, busy: Collection[str] = ()) -> tuple[list[PendingChunk], list[str]]:
        """Remove and return the next chunk of each utterance not in `busy`, and the ids of abandoned utterances.

        Chunks are in the order in which their utterances take turns. The call waits up to `timeout_s` for a chunk.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._free(busy) or self._abandoned or self._is_closed, timeout_s)
            abandoned = self._abandoned
            self._abandoned = []
            free = self._free(busy)
            return [self._next_of(utterance) for utterance in free], abandoned

    def _free(self, busy: Collection[str]) -> list[str]:
        return [utterance for utterance in self._waiting if utterance not in busy]

    def waiting(self) -> list[PendingChunk]:
        """Return the queued chunks without removing them."""
        with self._changed:
            return [pending for queue in self._waiting.values() for pending in queue]

    def close(self) -> None:
        """Refuse further chunks. Chunks in the queue can still be read."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def clear(self) -> list[PendingChunk]:
        with self._changed:
            waiting = self._waiting
            self._waiting = {}
            return [pending for queue in waiting.values() for pending in queue]

    @property
    def is_finished(self) -> bool:
        with self._changed:
            return self._is_closed and not self._waiting and not self._abandoned

    def _next_of(self, utterance: str) -> PendingChunk:
        queue = self._waiting.pop(utterance)
        pending = queue.popleft()
        if queue:
            self._waiting[utterance] = queue  # goes to the end of the queue, because utterances take turns
        return pending


logger = logging.getLogger(__name__)


def refuse(pending: PendingChunk, error: Exception, counts: Counts) -> None:
    """Answer a chunk with an error and count the error; log it if it is internal."""
    counts.add("cancelled" if isinstance(error, Cancelled) else "failed")
    if not isinstance(error, StrettoError):
        what = (pending.utterance, pending.chunk.index, incident(error))
        logger.error("utterance %s, chunk %d: %s", *what, exc_info=error)
    try:
        pending.reply.fail(error)
    except Exception:
        logger.exception("utterance %s: the error could not be delivered", pending.utterance)


class Unanswered:
    """Chunks that have been removed from the queue but not answered yet. Not thread-safe."""

    def __init__(self, counts: Counts, queue: ChunkQueue) -> None:
        self._counts = counts
        self._queue = queue
        self._pending: dict[int, PendingChunk] = {}

    def __iter__(self) -> Iterator[PendingChunk]:
        return iter(list(self._pending.values()))

    def __len__(self) -> int:
        return len(self._pending)

    def add(self, pending: PendingChunk) -> None:
        self._pending[id(pending)] = pending

    def signal_progress(self) -> None:
        """Signal progress to all unanswered and queued chunks, which wait while the decoder thread is busy for long."""
        for pending in (*self, *self._queue.waiting()):
            if pending.on_progress is not None:
                pending.on_progress()

    def send(self, pending: PendingChunk, pcm: np.ndarray | None, event: Event) -> None:
        """Answer a chunk. If sending raises an error, the chunk stays unanswered."""
        pending.reply.send(pcm, event)
        del self._pending[id(pending)]

    def hand_over(self, pending: PendingChunk) -> None:
        """Remove a chunk that another thread will answer."""
        del self._pending[id(pending)]

    def refuse(self, pending: PendingChunk, error: Exception) -> None:
        del self._pending[id(pending)]
        refuse(pending, error, self._counts)
