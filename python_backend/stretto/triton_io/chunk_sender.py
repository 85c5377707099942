"""Sender of one utterance's chunks to the decoder, with flow control, and the thread that sends responses."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import triton_python_backend_utils as pb_utils

from stretto.errors import Cancelled, Closing, Overloaded
from stretto.hops import Hop, stamp
from stretto.records.chunk import Envelope, LMChunk
from stretto.records.sampling import Delivery, OutputForm
from stretto.streams.chunking import DecoderLoad, Pacer
from stretto.triton_io.callers import Caller, refuse
from stretto.triton_io.flow import DecoderFailed, DecoderRefused, DecoderStalled, FlowSlot, Outcome
from stretto.triton_io.seal import Seal
from stretto.triton_io.stub import ticking, wait_until
from stretto.triton_io.tensors import CHUNK, CODES, array_tensor, bytes_tensor

T = TypeVar("T")


class ResponseThread:
    """Thread that runs blocking functions in the order of submission."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "responses")

    def submit(self, function: Callable[..., None], *arguments: Any) -> None:
        """Queue `function`, which must not raise an exception."""
        self._pool.submit(function, *arguments)

    async def call(self, function: Callable[..., T], *arguments: Any, **named: Any) -> T:
        """Run `function` on the thread, and return its result without blocking the event loop."""
        return await asyncio.wrap_future(self._pool.submit(function, *arguments, **named))

    def close(self) -> None:
        """Wait until everything has been sent, and end the thread."""
        self._pool.shutdown()


class Responses:
    """Responses to one request of the language model.

    Attributes:
        failure: Error raised while a response was sent.
        client_disconnected: True if `check_client` has found that the client disconnected.
    """

    def __init__(self, caller: Caller, thread: ResponseThread, seal: Seal) -> None:
        self._caller = caller
        self._sender = caller.sender
        self._thread = thread
        self._seal = seal
        self.failure: Exception | None = None
        self.client_disconnected = False

    def send(self, record: bytes, codes: np.ndarray | None) -> None:
        """Add a MAC to a serialised envelope, and send it to the decoder with a chunk's codes, integers [K, T]."""
        tensors = [bytes_tensor(CHUNK, self._seal.close(CHUNK.name, record, codes))]
        if codes is not None:
            tensors.append(array_tensor(CODES, codes))
        self._thread.submit(self._send, pb_utils.InferenceResponse(tensors))

    def answer(self, record: bytes) -> None:
        """Send a command's answer, which only the client reads."""
        self._thread.submit(self._send, pb_utils.InferenceResponse([bytes_tensor(CHUNK, record)]))

    def _send(self, response: Any) -> None:
        stamp(Hop.CHUNK_IS_SENT)
        try:
            self._sender.send(response)
        except Exception as error:
            self.failure = error

    async def end(self) -> None:
        """Send the final flag without a response."""
        await self._thread.call(self._sender.send, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    async def refuse(self, error: BaseException, subject: str) -> None:
        await self._thread.call(refuse, self._sender, error, subject)

    def check_client(self, slot: FlowSlot) -> None:
        """Check whether the client has disconnected, which may set `client_disconnected` later.

        The proxy's flags are checked because Triton reports a disconnect only to the last model of an ensemble. The
        slot passes it to the decoder. If the decoder has not reacted by the next check, this model was called without a
        decoder, so the utterance ends here.
        """
        if self._caller.is_flagged:
            self.client_disconnected |= slot.outcome is Outcome.CANCELLED
            slot.conclude(Outcome.CANCELLED)
        self._thread.submit(self._check)

    def _check(self) -> None:
        self.client_disconnected = self.client_disconnected or self._sender.is_cancelled()


@dataclass(frozen=True, slots=True)
class SenderLimits:
    """Timeouts, and limits on unanswered chunks.

    Attributes:
        max_chunks: Maximum number of chunks sent but not answered.
        max_frames: Number of unanswered frames at which no further chunk is sent.
        probe_s: Idle time after which the decoder is probed.
        poll_s: Interval between checks of whether the utterance is over.
        stall_s: Time without an answer or progress after which the utterance fails.
        check_s: Time without an answer after which the client's connection is checked directly.
        transit_s: Transport time of a chunk to the decoder and of its samples to the client.
        max_ahead_s: Maximum audio sent ahead of playback, in seconds; 0 for no limit. It bounds the responses that
            Triton buffers for a client that does not read.
    """

    max_chunks: int = 16
    max_frames: int = 250
    probe_s: float = 1.0
    poll_s: float = 0.02
    stall_s: float = 60.0
    check_s: float = 1.0
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
    """Sender of one utterance's chunks. All of its waits end when the utterance is over."""

    def __init__(
        self, responses: Responses, slot: FlowSlot, utterance: str, limits: SenderLimits, delivery: Delivery = DEFAULT
    ) -> None:
        self._responses = responses
        self._slot = slot
        self._utterance = utterance
        self._limits = limits
        self.flow = slot.address
        self._form: OutputForm | None = delivery.form  # None once it has been sent
        self._frame_rate = delivery.chunking.frame_rate
        self.pacer = Pacer(delivery.chunking, self._load, wait_for_turn=self._wait_for_turn, note_gap=slot.note_gap)
        self._frames_on_the_way: deque[int] = deque()  # frames of each unanswered chunk or probe
        self._num_sent = self._num_probes = self._num_frames_sent = 0
        self._first_sent_s: float | None = None
        self._quiet_since = self._checked_s = time.monotonic()

    async def pump(self, chunks: AsyncGenerator[LMChunk, None]) -> None:
        """Send all `chunks`, and close the generator; raise Cancelled, or the decoder's or generator's error."""
        try:
            async with asyncio.timeout(None) as scope:
                with ticking(lambda: self._poll(scope), self._limits.poll_s):
                    async for item in chunks:
                        # text does not wait for playback
                        await (self._wait_for_room() if item.codes is None else self._wait_for_turn())
                        self._check()
                        self._send(Envelope(self._utterance, self._slot.address, item.chunk, self._form), item)
                        self._form = None
        except TimeoutError:  # `_poll` ended the scope
            self._check()
            raise
        finally:
            await chunks.aclose()

    def _poll(self, scope: asyncio.Timeout) -> None:
        """End the timeout scope if the utterance is over; otherwise check the client and the decoder."""
        if not self._is_over():
            self._check_client_if_quiet()
            self._probe_if_quiet()
        elif scope.when() is None:
            scope.reschedule(0.0)

    async def _wait_for_turn(self) -> None:
        """Wait until playback and the decoder permit the next chunk."""
        await wait_until(lambda: not self._is_ahead(), self._limits.poll_s)
        await self._wait_for_room()

    async def _wait_for_room(self) -> None:
        """Wait until the decoder permits the next chunk, regardless of playback."""
        await self._wait_for_decoder(self._has_room)

    def _is_ahead(self) -> bool:
        """Return True if a client that plays from the first chunk on has more than `max_ahead_s` of unplayed audio."""
        if self._limits.max_ahead_s <= 0 or self._first_sent_s is None:
            return False
        played_s = time.monotonic() - self._first_sent_s
        return self._num_frames_sent / self._frame_rate > played_s + self._limits.max_ahead_s

    def _load(self) -> DecoderLoad:
        """Return the decoder's load plus the transport time; the pacer calls this once the utterance has frames."""
        self.begin_speech()
        load = self._slot.load
        return replace(load, latency_s=load.latency_s + self._limits.transit_s)

    async def settle(self) -> None:
        """Wait until the decoder has answered all chunks; raise DecoderStalled, or the error that ended them."""
        await self._wait_for_decoder(lambda: self._on_the_way() == 0 or self._is_unanswerable())
        self._check()

    def begin_speech(self) -> None:
        """Count the utterance among those that generate speech before it has frames, so that others prepare for it."""
        self._slot.begin_speech()

    def release(self) -> None:
        self._slot.release()

    async def _wait_for_decoder(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition` is true; raise DecoderStalled if the decoder shows no progress for `stall_s`."""
        num_answered = self._num_chunks_answered()
        progress = self._slot.progress
        since = time.monotonic()

        def poll() -> bool:
            nonlocal num_answered, progress, since
            if condition():
                return True
            self._check_client_if_quiet()
            if self._num_chunks_answered() > num_answered or self._slot.progress != progress:
                num_answered = self._num_chunks_answered()
                progress = self._slot.progress
                since = time.monotonic()
            if time.monotonic() - since > self._limits.stall_s:
                raise DecoderStalled(f"the decoder has acknowledged no chunk for {self._limits.stall_s:g} s")
            return False

        await wait_until(poll, self._limits.poll_s / 4)

    def _is_over(self) -> bool:
        return self._slot.outcome is not Outcome.OPEN or self._is_unanswerable()

    def _is_unanswerable(self) -> bool:
        """Return True if answers may never arrive: the client disconnected, or sending failed."""
        return self._responses.client_disconnected or self._responses.failure is not None

    def _check(self) -> None:
        """Raise the error that ended the utterance, if it is over."""
        if self._responses.client_disconnected:
            raise Cancelled("the client has disconnected")
        if self._responses.failure is not None:
            raise self._responses.failure
        outcome = self._slot.outcome
        if outcome is Outcome.CANCELLED:
            raise Cancelled("the client cancelled the request")
        if outcome in ENDED_BY_DECODER:
            raise ENDED_BY_DECODER[outcome](self._slot.reason)

    def _num_chunks_answered(self) -> int:
        """Return a lower bound on the number of answered chunks: the answers minus all probes sent."""
        return self._slot.num_answered - self._num_probes

    def _probe_if_quiet(self) -> None:
        """Probe the decoder if it is idle, so that it checks whether the client is still connected."""
        if time.monotonic() - self._quiet_since >= self._limits.probe_s and self._on_the_way() == 0:
            self._probe()

    def _probe(self) -> None:
        self._num_probes += 1
        self._send(Envelope(self._utterance, self._slot.address, None), None)

    def _check_client_if_quiet(self) -> None:
        """Check the client's connection if the decoder has not answered for `check_s`.

        The decoder may be waiting for this client to release slots of its ring.
        """
        now = time.monotonic()
        if self._on_the_way() and now - max(self._quiet_since, self._checked_s) > self._limits.check_s:
            self._checked_s = now
            self._responses.check_client(self._slot)
            self._probe()

    def _on_the_way(self) -> int:
        while self._frames_on_the_way and self._num_sent - len(self._frames_on_the_way) < self._slot.num_answered:
            self._frames_on_the_way.popleft()
        return len(self._frames_on_the_way)

    def _has_room(self) -> bool:
        return self._on_the_way() < self._limits.max_chunks and sum(self._frames_on_the_way) < self._limits.max_frames

    def _send(self, envelope: Envelope, item: LMChunk | None) -> None:
        stamp(Hop.CHUNK_IS_CUT)
        codes = None if item is None else item.codes
        num_frames = 0 if codes is None else codes.shape[1]
        self._num_sent += 1
        if item is None:  # probes are answered immediately, before chunks that are waiting
            self._frames_on_the_way.appendleft(0)
        else:
            self._frames_on_the_way.append(num_frames)
        num_audible = num_frames if item is None else item.chunk.num_audible(num_frames)
        self._num_frames_sent += num_audible
        if num_audible and self._first_sent_s is None:
            self._first_sent_s = time.monotonic()
        self._responses.send(envelope.to_bytes(), codes)
        self._quiet_since = time.monotonic()
