"""Chunks that wait to be decoded, in a queue per utterance. It decodes nothing."""

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
    """The answer to one chunk: exactly one of `send` and `fail` is called, once."""

    def send(self, pcm: np.ndarray | None, event: Event) -> None:
        """Deliver samples [n] float32 or int16, or none, with their event."""
        ...

    def fail(self, error: Exception) -> None:
        """Deliver an error; the utterance is over."""
        ...

    def is_cancelled(self) -> bool:
        """Whether nobody waits for this answer any more."""
        ...


@dataclass(frozen=True, slots=True)
class PendingChunk:
    """A chunk on its way to being decoded. codes: [K, T] integers, or None without audio.

    form: how the client wants its samples; that of the first chunk counts. on_device: told before the answer where on
    a GPU its samples lie, too, if they do; they stay there until the answer is sent. on_progress: told that what it
    waits for goes on, where that may take long.
    """

    utterance: str
    chunk: Chunk
    codes: np.ndarray | None
    reply: ChunkAnswer
    form: OutputForm = field(default_factory=OutputForm)
    on_device: Callable[[int], None] | None = None
    on_progress: Callable[[], None] | None = None


def check_waited_for(pending: PendingChunk) -> None:
    """Raise Cancelled where nobody waits for a chunk's answer any more."""
    if pending.reply.is_cancelled():
        raise Cancelled("the client cancelled the request")


class ChunkQueue:
    """Filled by any thread, emptied by one."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: dict[str, deque[PendingChunk]] = {}  # in the order in which each is next served
        self._abandoned: list[str] = []
        self._is_closed = False

    def __len__(self) -> int:
        with self._changed:
            return sum(map(len, self._waiting.values()))

    def put(self, pending: PendingChunk) -> bool:
        """Queue a chunk; False, and nothing queued, once the queue is closed."""
        with self._changed:
            if not self._is_closed:
                self._waiting.setdefault(pending.utterance, deque()).append(pending)
                self._changed.notify()
            return not self._is_closed

    def abandon(self, utterance: str) -> list[PendingChunk]:
        """Take back what an utterance has waiting, and have the reader told that it is over."""
        with self._changed:
            self._abandoned.append(utterance)
            self._changed.notify()
            return list(self._waiting.pop(utterance, ()))

    def take(self, timeout_s: float, busy: Collection[str] = ()) -> tuple[list[PendingChunk], list[str]]:
        """The next chunk of every utterance that is not `busy`, longest-waiting first, and the utterances abandoned.

        Returns at once what there is; only an empty queue waits, until something comes, it is closed or time is up.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._abandoned or self._is_closed, timeout_s)
            abandoned, self._abandoned = self._abandoned, []
            free = [utterance for utterance in self._waiting if utterance not in busy]
            return [self._next_of(utterance) for utterance in free], abandoned

    def waiting(self) -> list[PendingChunk]:
        """Those that wait, and go on waiting."""
        with self._changed:
            return [pending for queue in self._waiting.values() for pending in queue]

    def close(self) -> None:
        """Take no more chunks; those that wait can still be read."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def clear(self) -> list[PendingChunk]:
        """Take back everything."""
        with self._changed:
            waiting, self._waiting = self._waiting, {}
            return [pending for queue in waiting.values() for pending in queue]

    @property
    def is_finished(self) -> bool:
        """Whether it is closed and empty."""
        with self._changed:
            return self._is_closed and not self._waiting and not self._abandoned

    def _next_of(self, utterance: str) -> PendingChunk:
        queue = self._waiting.pop(utterance)
        pending = queue.popleft()
        if queue:
            self._waiting[utterance] = queue  # behind the others: each utterance in turn
        return pending
