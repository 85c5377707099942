"""Unanswered chunks, and error answers to chunks from any thread."""

import logging
from collections.abc import Iterator

import numpy as np

from stretto.decoder.chunk_queue import ChunkQueue, PendingChunk
from stretto.decoder.counts import Counts
from stretto.errors import Cancelled, StrettoError, incident
from stretto.records.event import Event

logger = logging.getLogger(__name__)


def refuse(pending: PendingChunk, error: Exception, counts: Counts) -> None:
    """Answer a chunk with an error, count it, and log internal errors."""
    counts.add("cancelled" if isinstance(error, Cancelled) else "failed")
    if not isinstance(error, StrettoError):
        what = (pending.utterance, pending.chunk.index, incident(error))
        logger.error("utterance %s, chunk %d: %s", *what, exc_info=error)
    try:
        pending.reply.fail(error)
    except Exception:
        logger.exception("utterance %s: the error could not be delivered", pending.utterance)


class Unanswered:
    """Chunks taken from the queue and not answered yet. For one thread."""

    def __init__(self, counts: Counts, queue: ChunkQueue) -> None:
        self._counts, self._queue = counts, queue
        self._pending: dict[int, PendingChunk] = {}

    def __iter__(self) -> Iterator[PendingChunk]:
        return iter(list(self._pending.values()))

    def __len__(self) -> int:
        return len(self._pending)

    def add(self, pending: PendingChunk) -> None:
        """Add a chunk."""
        self._pending[id(pending)] = pending

    def tell(self) -> None:
        """Signal progress to all waiting chunks, queued ones included.

        A long operation occupies the decoder thread, so all of them wait for it.
        """
        for pending in (*self, *self._queue.waiting()):
            if pending.on_progress is not None:
                pending.on_progress()

    def send(self, pending: PendingChunk, pcm: np.ndarray | None, event: Event) -> None:
        """Answer a chunk; if that raises, the chunk stays unanswered."""
        pending.reply.send(pcm, event)
        del self._pending[id(pending)]

    def refuse(self, pending: PendingChunk, error: Exception) -> None:
        """Answer a chunk with an error."""
        del self._pending[id(pending)]
        refuse(pending, error, self._counts)
