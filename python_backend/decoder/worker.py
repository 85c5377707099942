"""The decoder's thread: chunks of many utterances in, one reply to each out, decoded in micro-batches.

Whatever waits is decoded at once, at most one chunk of an utterance per batch; nothing waits for company.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
import torch

from python_backend.codec.base import Codec
from python_backend.config import DecoderConfig
from python_backend.decoder.batching import Job, decode_group, group_by_shape
from python_backend.decoder.events import make_event
from python_backend.decoder.mailbox import Delivery, Mailbox, Reply
from python_backend.decoder.sessions import Session, Sessions
from python_backend.errors import Cancelled, Overloaded, StrettoError
from python_backend.streams.chunk import Chunk
from python_backend.streams.delivery import OutputForm

logger = logging.getLogger(__name__)
PLAIN = OutputForm()
COUNTS = ("chunks", "failed", "cancelled", "expired", "batches", "windows", "frames")


class DecoderWorker:
    """Decodes chunks on a thread of its own. Every chunk pushed gets one reply, in order within its utterance."""

    def __init__(self, codec: Codec, config: DecoderConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._codec = codec
        self._config = config
        self._mailbox = Mailbox()
        self._sessions = Sessions(codec, config.max_utterances, config.idle_timeout_s, clock)
        self._counts: Counter[str] = Counter()
        self._counting = threading.Lock()
        self._largest_batch = 0
        self._decode_s = 0.0
        self._thread = threading.Thread(target=self._run, name="decoder", daemon=True)
        self._thread.start()

    def push(
        self, utterance: str, chunk: Chunk, codes: np.ndarray | None, reply: Reply, form: OutputForm = PLAIN
    ) -> None:
        """Have a chunk decoded; returns at once. Any thread may call it. codes: [K, T] integers, or None."""
        delivery = Delivery(utterance, chunk, codes, reply, form)
        if not self._mailbox.put(delivery):
            self._refuse(delivery, Overloaded("the decoder is stopping"))

    def abandon(self, utterance: str) -> None:
        """Drop an utterance that is over for a reason that the decoder cannot see; its waiting chunks fail."""
        for delivery in self._mailbox.abandon(utterance):
            self._refuse(delivery, Cancelled("the utterance was abandoned"))

    def stop(self) -> None:
        """Decode what waits, for up to `stop_timeout_s`, fail the rest, and end the thread."""
        self._mailbox.close()
        self._thread.join(self._config.stop_timeout_s)
        self._refuse_all()
        self._thread.join()

    def stats(self) -> dict[str, float]:
        """Counts since the start, utterances open and chunks waiting now, and the seconds spent decoding."""
        now = {
            "open_utterances": len(self._sessions),
            "session_bytes": self._sessions.num_bytes,
            "waiting_chunks": len(self._mailbox),
        }
        spent = {"largest_batch": self._largest_batch, "decode_s": self._decode_s}
        return {name: self._counts[name] for name in COUNTS} | now | spent

    def _run(self) -> None:
        torch.set_num_threads(self._config.threads)
        try:
            while not self._mailbox.is_finished:
                self._serve_once()
        finally:  # whatever ended the thread, nobody is left waiting
            self._mailbox.close()
            self._refuse_all()

    def _serve_once(self) -> None:
        deliveries, abandoned = self._mailbox.take(self._config.max_batch, self._config.idle_timeout_s / 4)
        for utterance in abandoned:
            self._sessions.close(utterance)
        jobs = [job for job in map(self._admit, deliveries) if job is not None]
        expired = self._sessions.expire()
        if expired:
            logger.warning("utterances without a chunk for %g s: %s", self._config.idle_timeout_s, expired)
            self._count("expired", len(expired))
        for group in group_by_shape(jobs):
            self._decode(group)

    def _admit(self, delivery: Delivery) -> Job | None:
        """The job that a chunk makes; None if it is already answered."""
        self._count("chunks", 1)
        try:
            if delivery.reply.is_cancelled():
                raise Cancelled("the client cancelled the request")
            session = self._sessions.advance(delivery.utterance, delivery.chunk.index, delivery.form)
            window = session.windower.push(delivery.codes, delivery.chunk.is_final)
            if window is not None:
                return Job(delivery, session, window)
            self._answer(delivery, session, None)
        except Exception as error:
            self._fail(delivery, error)
        return None

    def _decode(self, group: list[Job]) -> None:
        """Decode a group and answer it; if that fails, each of it alone, so that only the culprit's utterance ends."""
        begun = time.perf_counter()
        try:
            pcm = decode_group(self._codec, group)
        except Exception as error:
            if len(group) == 1:
                self._fail(group[0].delivery, error)
            else:
                for job in group:
                    self._decode([job])
            return
        spent_s = time.perf_counter() - begun
        self._count_batch(group, spent_s)
        for job, samples in zip(group, pcm, strict=True):
            job.session.decode_s += spent_s / len(group)
            try:
                self._answer(job.delivery, job.session, samples)
            except Exception as error:
                self._fail(job.delivery, error)

    def _count(self, name: str, by: int) -> None:
        with self._counting:
            self._counts[name] += by

    def _count_batch(self, group: list[Job], spent_s: float) -> None:
        self._count("batches", 1)
        self._count("windows", len(group))
        self._count("frames", len(group) * group[0].window.num_frames)
        self._largest_batch = max(self._largest_batch, len(group))
        self._decode_s += spent_s

    def _answer(self, delivery: Delivery, session: Session, pcm: np.ndarray | None) -> None:
        if delivery.chunk.is_final:
            self._sessions.close(delivery.utterance)
        samples = session.render(pcm, delivery.chunk.is_final)
        num_samples = 0 if samples is None else len(samples)
        delivery.reply.send(samples, make_event(delivery, session, num_samples, self._codec.spec))

    def _fail(self, delivery: Delivery, error: Exception) -> None:
        """End an utterance with an error."""
        self._sessions.close(delivery.utterance)
        self._refuse(delivery, error)

    def _refuse_all(self) -> None:
        for delivery in self._mailbox.clear():
            self._refuse(delivery, Overloaded("the decoder is stopping"))

    def _refuse(self, delivery: Delivery, error: Exception) -> None:
        """Answer a chunk with an error; the one place where that happens, on whatever thread."""
        self._count("cancelled" if isinstance(error, Cancelled) else "failed", 1)
        if not isinstance(error, StrettoError):
            logger.error("utterance %s, chunk %d", delivery.utterance, delivery.chunk.index, exc_info=error)
        try:
            delivery.reply.fail(error)
        except Exception:
            logger.exception("utterance %s: the error could not be delivered", delivery.utterance)
