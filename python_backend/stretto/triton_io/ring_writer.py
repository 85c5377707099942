"""Replies that go through a client's ring: a reply without room waits and delays no other utterance.

    decoder's thread ── offer ──► room: into the ring, answered at once
                                  full: held in order ── this module's thread, as slots are released ──► answered

A held reply is an unanswered chunk, so the language model pauses once enough of them are held.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np

from stretto.errors import Cancelled, InvalidRequest
from stretto.records.event import Event
from stretto.records.ring_address import RingAddress
from stretto.triton_io import stub
from stretto.triton_io.failures import log_failure
from stretto.triton_io.flow import FlowSlot
from stretto.triton_io.ring import PcmRing

logger = logging.getLogger(__name__)
POLL_S = 0.002
SWEEP_S = 0.5
STALL_S = 30.0  # time without a released slot after which the client counts as gone


class RingReply(Protocol):
    """Answer to one chunk, as used by a writer."""

    def deliver(self, pcm: np.ndarray | None, event: Event) -> None:
        """Send an event, with samples unless they are in the ring."""
        ...

    def fail(self, error: BaseException) -> None:
        """End the utterance with an error."""
        ...

    def is_cancelled(self) -> bool:
        """Return True if the client no longer waits for this answer."""
        ...


Held = tuple[RingReply, np.ndarray | None, Event]


class RingWriter:
    """Ring of one utterance with the replies that wait for room in it. The ring is closed before the last event."""

    def __init__(self, ring: PcmRing, slot: FlowSlot) -> None:
        self._ring, self.slot = ring, slot
        self._held: deque[Held] = deque()
        self._lock = threading.Lock()
        self._moved_s = time.monotonic()
        self._is_open = True

    @property
    def is_on_device(self) -> bool:
        """True if samples go to GPU memory."""
        return self._ring.is_on_device

    @property
    def is_waiting(self) -> bool:
        return bool(self._held)

    def offer(self, reply: RingReply, pcm: np.ndarray | None, event: Event, address: int | None = None) -> None:
        """Answer a chunk in its turn, at once if there is room.

        `address` is the GPU address of the samples, valid until this returns; replies that wait are copied from the
        host.
        """
        with self._lock:
            if not self._is_open:
                raise Cancelled("the utterance is over")
            self._held.append((reply, pcm, event))
            if len(self._held) == 1:
                self._moved_s = time.monotonic()
                try:
                    self._move(address)
                except BaseException:  # the offering side answers it and must not query it afterwards
                    self._held.clear()
                    raise

    def flush(self) -> None:
        """Answer the replies that have room now.

        End the utterance if its client has disconnected or stopped reading.
        """
        with self._lock:
            if not self._held:
                return
            try:
                if self._held[0][0].is_cancelled() or not self.slot.is_held or not self._is_open:
                    raise Cancelled("the client cancelled the request")
                if not self._move() and time.monotonic() - self._moved_s > STALL_S:
                    raise InvalidRequest("options.output.ring", f"slots released within {STALL_S:g} s", "none")
            except Exception as error:
                log_failure(error, "a client's ring")
                self._give_up(error)

    def close(self) -> None:
        """Close the ring and fail the held replies."""
        with self._lock:
            self._give_up(Cancelled("the utterance is over"))
            self._let_go()

    def _let_go(self) -> None:
        if self._is_open:
            self._is_open = False
            self._ring.close()

    def _give_up(self, error: Exception) -> None:
        """End the utterance for every held reply, even if one cannot be answered."""
        while self._held:
            try:
                self._held.popleft()[0].fail(error)
            except Exception:
                logger.exception("a reply that waited for its ring could not be ended")

    def _move(self, address: int | None = None) -> bool:
        """Answer held replies while there is room; return True if any was answered."""
        moved = False
        while self._held:
            reply, pcm, event = self._held[0]
            if pcm is not None and self._ring.holds(pcm):  # samples larger than the ring go with the response, in order
                record = self._ring.put(pcm, address)
                if record is None:
                    break
                pcm, event = None, {**event, "ring": record}
            if event["is_final"]:
                self._let_go()  # before the last event, after which a client may free its memory
            self._held.popleft()
            reply.deliver(pcm, event)
            moved, self._moved_s = True, time.monotonic()
        return moved


class RingWriters:
    """Writers of all utterances with a ring, and the thread that flushes them."""

    def __init__(self) -> None:
        self._writers: dict[str, RingWriter] = {}
        self._lock = threading.Lock()
        self._may_wait = threading.Event()
        stub.start_thread("rings", self._run)

    def __len__(self) -> int:
        return len(self._writers)

    def open(self, utterance: str, address: RingAddress, slot: FlowSlot) -> None:
        """Create the writer of an utterance, if it has none; raise InvalidRequest if there is no ring."""
        with self._lock:
            if utterance not in self._writers:
                self._writers[utterance] = RingWriter(PcmRing.open(address), slot)
                self._may_wait.set()

    def of(self, utterance: str) -> RingWriter | None:
        """Return the writer of an utterance, or None."""
        return self._writers.get(utterance)

    def _run(self) -> None:
        swept_s = time.monotonic()
        while True:
            self._may_wait.wait()
            waiting = [(name, writer) for name, writer in list(self._writers.items()) if writer.is_waiting]
            for utterance, writer in waiting:
                with self._dropping_what_fails(utterance):
                    writer.flush()
            if time.monotonic() - swept_s > SWEEP_S:
                swept_s = time.monotonic()
                self._sweep()
            time.sleep(POLL_S if waiting else 10 * POLL_S)

    def _sweep(self) -> None:
        """Close the writers of utterances whose flow slots have been released."""
        with self._lock:
            for utterance, writer in list(self._writers.items()):
                with self._dropping_what_fails(utterance):
                    if not writer.slot.is_held:
                        del self._writers[utterance]
                        writer.close()
            if not self._writers:
                self._may_wait.clear()

    @contextmanager
    def _dropping_what_fails(self, utterance: str) -> Iterator[None]:
        """Drop a writer that raises, so that the thread continues for the others."""
        try:
            yield
        except Exception:
            logger.exception("the ring of utterance %s is given up", utterance)
            self._writers.pop(utterance, None)
