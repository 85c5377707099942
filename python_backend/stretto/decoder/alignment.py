"""Samples and text for word times, and the sending of events with word times."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from stretto.aligning.align import TimedWord, split_words, word_spans
from stretto.decoder.chunk_queue import Counts, PendingChunk, refuse
from stretto.errors import Cancelled
from stretto.records.chunk import ALIGNED_RATE, MAX_ALIGNED_CHARS, MAX_ALIGNED_S, Alignment, Chunk, Event, WordTime

FULL_SCALE = 32_767
Answer = Callable[[list[TimedWord] | None], None]


class Aligning(Protocol):
    """Interface of the alignment queue (`aligning.process.AlignmentQueue`)."""

    def submit(self, pcm: list[NDArray[np.int16]], rate: int, text: str, answer: Answer) -> None:
        """Align a text with samples at `rate` Hz, given as parts int16 [n], and call `answer` once."""
        ...

    def close(self) -> None:
        """Answer all pending jobs and stop."""
        ...


class StoredBytes:
    """Thread-safe count of the bytes stored for all utterances, with a limit."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._lock = threading.Lock()

    @property
    def held(self) -> int:
        return self._held

    def acquire(self, num_bytes: int) -> bool:
        """Add `num_bytes` and return True, or return False if this would exceed the limit."""
        with self._lock:
            fits = self._held + num_bytes <= self._limit
            self._held += num_bytes if fits else 0
            return fits

    def release(self, num_bytes: int) -> None:
        with self._lock:
            self._held -= num_bytes


@dataclass(slots=True)
class Collected:
    """Samples and text of one utterance, collected until it ends.

    Attributes:
        rate: Sample rate of the samples in Hz.
        text: Text of the reply so far, or the text that is read aloud.
        is_of_client: True if the client has sent `text`, so that words have positions in it.
        pcm: Parts of the samples, int16 [n] each.
    """

    stored: StoredBytes
    rate: int
    text: str = ""
    is_of_client: bool = False
    pcm: list[NDArray[np.int16]] = field(default_factory=list)
    _collects_text: bool = True
    _collects_pcm: bool = True
    _num_bytes: int = 0
    _is_too_much: bool = False

    @classmethod
    def begin(cls, request: Alignment, rate: int, stored: StoredBytes) -> "Collected":
        """Return a new collection with the text and recording in the request; `rate` is the codec's, in Hz."""
        is_of_client = bool(request.text) and not request.is_piece
        collected = cls(stored, rate, request.text, is_of_client, _collects_text=not request.text)
        if request.recording:
            collected._store(np.frombuffer(request.recording[: len(request.recording) // 2 * 2], np.int16))
            collected.rate = ALIGNED_RATE
            collected._collects_pcm = False
        return collected

    def add(self, chunk: Chunk, pcm: NDArray[np.float32] | None) -> None:
        """Add the text of a chunk and, unless `pcm` is None, its samples, float32 [n] in [-1, 1]."""
        text = chunk.written or chunk.text
        if self._collects_text and len(self.text) + len(text) <= MAX_ALIGNED_CHARS:
            self.text += text
            self.is_of_client = self.is_of_client or bool(chunk.written)
        if self._collects_pcm and pcm is not None:
            self._store(np.rint(np.clip(pcm, -1, 1) * FULL_SCALE).astype(np.int16))

    def _store(self, pcm: NDArray[np.int16]) -> None:
        length = sum(map(len, self.pcm)) + len(pcm)
        if self._is_too_much or length > MAX_ALIGNED_S * self.rate or not self.stored.acquire(pcm.nbytes):
            self.drop()
            self._is_too_much = True
            return
        self.pcm.append(pcm)
        self._num_bytes += pcm.nbytes

    def drop(self) -> None:
        self.stored.release(self._num_bytes)
        self.pcm = []
        self._num_bytes = 0

    def align(self, queue: Aligning | None, answer: Answer) -> None:
        """Request the word times; when they arrive, free the samples and call `answer` once.

        Args:
            answer: Called with the words, or with None if there is no aligner, nothing to align, or more audio than may
                be stored.
        """
        if queue is None or not self.pcm or not self.text:
            self.drop()
            answer(None)
            return

        def finish(words: list[TimedWord] | None) -> None:
            self.drop()
            answer(words)

        queue.submit(self.pcm, self.rate, self.text, finish)


def send_aligned(
    pending: PendingChunk, event: Event, collected: Collected, words: list[TimedWord] | None, counts: Counts
) -> None:
    """Answer an utterance's last chunk with the word times, or None; any thread may call this function.

    Args:
        event: The chunk's event, without words.
    """
    event["report"]["aligned"] = words is not None
    event["report"]["untimed_words"] = split_words(collected.text) if words is None else []
    for word, (first, end) in zip(words or (), word_spans(collected.text), strict=False):
        start_s, end_s, score = (round(number, 4) for number in word[1:])
        time: WordTime = {"word": word.word, "start_s": start_s, "end_s": end_s, "score": score}
        if collected.is_of_client:
            time |= {"text_start": first, "text_end": end}
        event["words"].append(time)
    try:
        if pending.reply.is_cancelled():
            raise Cancelled("the client cancelled the request")
        pending.reply.send(None, event)
    except Exception as error:  # the chunk must be answered after any failure
        refuse(pending, error, counts)
