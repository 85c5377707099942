"""The one place where a chunk is answered with an error, on whatever thread."""

import logging

from stretto.decoder.chunk_queue import Delivery
from stretto.decoder.counts import Counts
from stretto.errors import Cancelled, StrettoError

logger = logging.getLogger(__name__)


def refuse(delivery: Delivery, error: Exception, counts: Counts) -> None:
    """Answer a chunk with an error, count it, and log what is neither the caller's doing nor a refusal."""
    counts.add("cancelled" if isinstance(error, Cancelled) else "failed")
    if not isinstance(error, StrettoError):
        logger.error("utterance %s, chunk %d", delivery.utterance, delivery.chunk.index, exc_info=error)
    try:
        delivery.reply.fail(error)
    except Exception:
        logger.exception("utterance %s: the error could not be delivered", delivery.utterance)
