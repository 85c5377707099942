"""The chunks that have no answer yet, and the one place where a chunk is answered with an error, on whatever thread."""

import logging
from collections.abc import Iterator

import numpy as np

from stretto.decoder.chunk_queue import PendingChunk
from stretto.decoder.counts import Counts
from stretto.errors import Cancelled, StrettoError, incident
from stretto.records.event import Event

logger = logging.getLogger(__name__)


def refuse(delivery: PendingChunk, error: Exception, counts: Counts) -> None:
    """Answer a chunk with an error, count it, and log what is neither the caller's doing nor a refusal."""
    counts.add("cancelled" if isinstance(error, Cancelled) else "failed")
    if not isinstance(error, StrettoError):
        what = (delivery.utterance, delivery.chunk.index, incident(error))
        logger.error("utterance %s, chunk %d: %s", *what, exc_info=error)
    try:
        delivery.reply.fail(error)
    except Exception:
        logger.exception("utterance %s: the error could not be delivered", delivery.utterance)


class Unanswered:
    """Chunks that have been taken in; each leaves with its one answer. Used by one thread."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self._deliveries: dict[int, PendingChunk] = {}

    def __iter__(self) -> Iterator[PendingChunk]:
        return iter(list(self._deliveries.values()))

    def __len__(self) -> int:
        return len(self._deliveries)

    def add(self, delivery: PendingChunk) -> None:
        """Take a chunk in."""
        self._deliveries[id(delivery)] = delivery

    def send(self, delivery: PendingChunk, pcm: np.ndarray | None, event: Event) -> None:
        """Answer a chunk; what that raises leaves it unanswered."""
        delivery.reply.send(pcm, event)
        del self._deliveries[id(delivery)]

    def refuse(self, delivery: PendingChunk, error: Exception) -> None:
        """Answer a chunk with an error."""
        del self._deliveries[id(delivery)]
        refuse(delivery, error, self._counts)
