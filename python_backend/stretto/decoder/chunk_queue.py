"""Queues of chunks to be decoded, one per utterance."""

import threading
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from stretto.errors import Cancelled
from stretto.records.chunk import Chunk
from stretto.records.delivery import OutputForm
from stretto.records.event import Event


class ChunkAnswer(Protocol):
    """Answer to one chunk: exactly one of `send` and `fail` is called, once."""

    def send(self, pcm: np.ndarray | None, event: Event) -> None:
        """Deliver samples [n], float32 or int16, or None, with their event."""
        ...

    def fail(self, error: Exception) -> None:
        """Deliver an error, which ends the utterance."""
        ...

    def is_cancelled(self) -> bool:
        """Return True if the client no longer waits for this answer."""
        ...


@dataclass(frozen=True, slots=True)
class PendingChunk:
    """Chunk on its way to being decoded.

    Attributes:
        utterance: Id of the utterance.
        chunk: Record of the chunk.
        codes: Integers [K, T], or None for a chunk without audio.
        reply: Receiver of the answer.
        form: Output format requested by the client; that of the first chunk counts.
        on_device: Called before the answer with the GPU address of the samples, valid until the answer is sent.
        on_progress: Called during long operations to signal progress.
    """

    utterance: str
    chunk: Chunk
    codes: np.ndarray | None
    reply: ChunkAnswer
    form: OutputForm = field(default_factory=OutputForm)
    on_device: Callable[[int], None] | None = None
    on_progress: Callable[[], None] | None = None


def check_waited_for(pending: PendingChunk) -> None:
    """Raise Cancelled if the client no longer waits for the chunk's answer."""
    if pending.reply.is_cancelled():
        raise Cancelled("the client cancelled the request")


class ChunkQueue:
    """Queue with many producer threads and one consumer thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: dict[str, deque[PendingChunk]] = {}  # in serving order
        self._abandoned: list[str] = []
        self._is_closed = False

    def __len__(self) -> int:
        with self._changed:
            return sum(map(len, self._waiting.values()))

    def put(self, pending: PendingChunk) -> bool:
        """Queue a chunk and return True, or return False if the queue is closed."""
        with self._changed:
            if not self._is_closed:
                self._waiting.setdefault(pending.utterance, deque()).append(pending)
                self._changed.notify()
            return not self._is_closed

    def abandon(self, utterance: str) -> list[PendingChunk]:
        """Remove and return an utterance's queued chunks, and report the utterance as abandoned to the reader."""
        with self._changed:
            self._abandoned.append(utterance)
            self._changed.notify()
            return list(self._waiting.pop(utterance, ()))

    def take(self, timeout_s: float, busy: Collection[str] = ()) -> tuple[list[PendingChunk], list[str]]:
        """Return the next chunk of each utterance not in `busy`, longest-waiting first, and the abandoned utterances.

        Args:
            timeout_s: Longest wait, in seconds, if the queue is empty and open.
            busy: Utterances with a chunk in progress.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._abandoned or self._is_closed, timeout_s)
            abandoned, self._abandoned = self._abandoned, []
            free = [utterance for utterance in self._waiting if utterance not in busy]
            return [self._next_of(utterance) for utterance in free], abandoned

    def waiting(self) -> list[PendingChunk]:
        """Return the queued chunks without removing them."""
        with self._changed:
            return [pending for queue in self._waiting.values() for pending in queue]

    def close(self) -> None:
        """Refuse further chunks; queued chunks can still be taken."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def clear(self) -> list[PendingChunk]:
        """Remove and return all queued chunks."""
        with self._changed:
            waiting, self._waiting = self._waiting, {}
            return [pending for queue in waiting.values() for pending in queue]

    @property
    def is_finished(self) -> bool:
        """True if the queue is closed and empty."""
        with self._changed:
            return self._is_closed and not self._waiting and not self._abandoned

    def _next_of(self, utterance: str) -> PendingChunk:
        queue = self._waiting.pop(utterance)
        pending = queue.popleft()
        if queue:
            self._waiting[utterance] = queue  # last in line: utterances take turns
        return pending
