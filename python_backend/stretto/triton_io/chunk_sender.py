"""One utterance's chunks on their way from the language model to the decoder.

chunks ─► window: not more chunks or frames on the way than the decoder keeps up with ─► responses
            │ quiet, or unanswered, for long: a probe, which the decoder answers at once; only what comes anew shows
            │ it whether the client is still there
            └ slot cancelled: stop
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, replace

from stretto.errors import Cancelled, Closing, Overloaded
from stretto.records.chunk import LMChunk
from stretto.records.delivery import Delivery, OutputForm
from stretto.records.envelope import Envelope
from stretto.streams.chunking import DecoderLoad, Pacer
from stretto.triton_io.flow import DecoderFailed, DecoderRefused, DecoderStalled, FlowSlot, Outcome
from stretto.triton_io.responses import Responses
from stretto.triton_io.ticking import ticking, until


@dataclass(frozen=True, slots=True)
class SenderLimits:
    """What may be on the way at once, and how long one waits.

    max_frames: frames sent and not yet answered; with one chunk on the way a larger one may still follow.
    probe_s: how long nothing goes to the decoder before it is asked after the client. poll_s: how often one looks
    whether the utterance is over.
    stall_s: how long the decoder may answer nothing, and tell of no progress, before the utterance fails.
    look_s: how long it may before one looks whether the caller has left, of which the decoder tells it otherwise.
    transit_s: what a chunk takes on the way to the decoder and, as samples, from there.
    max_ahead_s: how much more audio may have left than a listener can have heard since the first of it; 0 for any.
    Triton holds what a client does not read, without a limit of its own and without telling; this is one.
    """

    max_chunks: int = 16
    max_frames: int = 250
    probe_s: float = 0.17
    poll_s: float = 0.02
    stall_s: float = 60.0
    look_s: float = 1.0
    transit_s: float = 0.01
    max_ahead_s: float = 0.0


DEFAULT = Delivery()
ENDED_BY_DECODER = {
    Outcome.OVERLOADED: Overloaded,
    Outcome.CLOSING: Closing,
    Outcome.FAILED: DecoderFailed,
    Outcome.REFUSED: DecoderRefused,
}


class ChunkSender:
    """Sends one utterance; whatever it waits for, it stops when the utterance is over. flow: where it is counted."""

    def __init__(
        self, responses: Responses, slot: FlowSlot, utterance: str, limits: SenderLimits, delivery: Delivery = DEFAULT
    ) -> None:
        self._responses, self._slot, self._utterance = responses, slot, utterance
        self._limits, self.flow = limits, slot.address
        self._form: OutputForm | None = delivery.form  # until it is told
        self._frame_rate = delivery.chunking.frame_rate
        self.pacer = Pacer(delivery.chunking, self._load)
        self._frames_on_the_way: deque[int] = deque()  # per chunk or probe not yet answered
        self._num_sent = self._num_probes = self._num_frames_sent = 0
        self._first_sent_s: float | None = None
        self._quiet_since = self._looked_s = time.monotonic()

    async def pump(self, chunks: AsyncGenerator[LMChunk, None]) -> None:
        """Send all `chunks`; raises Cancelled, or what the generator raises. The generator is closed in any case."""
        try:
            async with asyncio.timeout(None) as scope:
                with ticking(lambda: self._look(scope), self._limits.poll_s):
                    async for item in chunks:
                        await self._wait_for_turn()
                        self._check()
                        self._send(Envelope(self._utterance, self._slot.address, item.chunk, self._form), item)
                        self._form = None
        except TimeoutError:  # of the scope, where `_look` has ended it
            self._check()
            raise
        finally:
            await chunks.aclose()

    def _look(self, scope: asyncio.Timeout) -> None:
        """End the scope if the utterance is over; else see to it that one learns when it is."""
        if not self._is_over():
            self._look_for_caller()
            self._probe_if_quiet()
        elif scope.when() is None:
            scope.reschedule(0.0)

    async def _wait_for_turn(self) -> None:
        """Wait until the next chunk may leave."""
        await until(lambda: not self._is_ahead(), self._limits.poll_s)
        await self._wait_for_decoder(self._has_room)

    def _is_ahead(self) -> bool:
        """Whether more audio has left than somebody who listens since the first chunk may leave unread."""
        if self._limits.max_ahead_s <= 0 or self._first_sent_s is None:
            return False
        heard_s = time.monotonic() - self._first_sent_s
        return self._num_frames_sent / self._frame_rate > heard_s + self._limits.max_ahead_s

    def _load(self) -> DecoderLoad:
        """The decoder's, seen from here."""
        load = self._slot.load
        return replace(load, latency_s=load.latency_s + self._limits.transit_s)

    async def settle(self) -> None:
        """Wait until the decoder has answered everything; raises what it found, or DecoderStalled if it does not."""
        await self._wait_for_decoder(lambda: self._on_the_way() == 0 or self._is_unanswerable())
        self._check()

    def release(self) -> None:
        """Give the slot back."""
        self._slot.release()

    async def _wait_for_decoder(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition` holds; DecoderStalled where nothing is answered meanwhile for too long."""
        num_answered, progress, since = self._num_chunks_answered(), self._slot.progress, time.monotonic()

        def look() -> bool:
            nonlocal num_answered, progress, since
            if condition():
                return True
            self._look_for_caller()
            if self._num_chunks_answered() > num_answered or self._slot.progress != progress:
                num_answered, progress, since = self._num_chunks_answered(), self._slot.progress, time.monotonic()
            if time.monotonic() - since > self._limits.stall_s:
                raise DecoderStalled(f"the decoder has answered nothing for {self._limits.stall_s:g} s")
            return False

        await until(look, self._limits.poll_s / 4)

    def _is_over(self) -> bool:
        return self._slot.outcome is not Outcome.OPEN or self._is_unanswerable()

    def _is_unanswerable(self) -> bool:
        """Whether what is sent may never be answered."""
        return self._responses.caller_has_left or self._responses.failure is not None

    def _check(self) -> None:
        """Raise what ended the utterance, if it is over."""
        if self._responses.caller_has_left:
            raise Cancelled("the caller has left")
        if self._responses.failure is not None:
            raise self._responses.failure
        outcome = self._slot.outcome
        if outcome is Outcome.CANCELLED:
            raise Cancelled("the client cancelled the request")
        if outcome in ENDED_BY_DECODER:
            raise ENDED_BY_DECODER[outcome](self._slot.reason)

    def _num_chunks_answered(self) -> int:
        """So many, or fewer by the probes that are still on their way."""
        return self._slot.num_answered - self._num_probes

    def _probe_if_quiet(self) -> None:
        """Ask after the client when nothing has gone to the decoder for a while and nothing is on its way there."""
        if time.monotonic() - self._quiet_since >= self._limits.probe_s and self._on_the_way() == 0:
            self._probe()

    def _probe(self) -> None:
        self._num_probes += 1
        self._send(Envelope(self._utterance, self._slot.address, None), None)

    def _look_for_caller(self) -> None:
        """See whether the caller, or the client, has left when the decoder has answered nothing for a while.

        It may be waiting for a client who is to make room for samples.
        """
        now = time.monotonic()
        if self._on_the_way() and now - max(self._quiet_since, self._looked_s) > self._limits.look_s:
            self._looked_s = now
            self._responses.look_for_caller(self._slot)
            self._probe()

    def _on_the_way(self) -> int:
        while self._frames_on_the_way and self._num_sent - len(self._frames_on_the_way) < self._slot.num_answered:
            self._frames_on_the_way.popleft()
        return len(self._frames_on_the_way)

    def _has_room(self) -> bool:
        return self._on_the_way() < self._limits.max_chunks and sum(self._frames_on_the_way) < self._limits.max_frames

    def _send(self, envelope: Envelope, item: LMChunk | None) -> None:
        codes = None if item is None else item.codes
        num_frames = 0 if codes is None else codes.shape[1]
        self._num_sent += 1
        if item is None:  # answered before the chunks that wait
            self._frames_on_the_way.appendleft(0)
        else:
            self._frames_on_the_way.append(num_frames)
        num_heard = num_frames if item is None else item.chunk.num_heard(num_frames)
        self._num_frames_sent += num_heard
        if num_heard and self._first_sent_s is None:
            self._first_sent_s = time.monotonic()
        self._responses.send(envelope.to_json(), codes)
        self._quiet_since = time.monotonic()
