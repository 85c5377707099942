"""One utterance's chunks on their way from the language model to the decoder.

chunks ─► window: not more chunks or frames on the way than the decoder keeps up with ─► responses
            │ quiet for long: a probe, so that the decoder gets to see whether the client is still there
            └ slot cancelled: stop
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any

import triton_python_backend_utils as pb_utils

from python_backend.errors import Cancelled
from python_backend.streams.chunk import LMChunk
from python_backend.triton_io.envelope import Envelope
from python_backend.triton_io.flow import FlowSlot
from python_backend.triton_io.schema import CHUNK, CODES
from python_backend.triton_io.tensors import array_tensor, record_tensor


@dataclass(frozen=True, slots=True)
class OutflowLimits:
    """What may be on the way at once, and how long one waits.

    max_frames: frames sent and not acknowledged; with one chunk on the way a larger one may still follow.
    stall_s: how long the decoder may acknowledge nothing before the utterance fails.
    """

    max_chunks: int = 16
    max_frames: int = 250
    probe_s: float = 0.1
    poll_s: float = 0.02
    stall_s: float = 60.0


class DecoderStalled(Exception):
    """The decoder has not acknowledged a chunk for too long."""


class Outflow:
    """Sends one utterance; every wait in it ends early when the slot is cancelled."""

    def __init__(self, sender: Any, slot: FlowSlot, utterance: str, limits: OutflowLimits) -> None:
        self._sender = sender
        self._slot = slot
        self._utterance = utterance
        self._limits = limits
        self._frames_on_the_way: deque[int] = deque()  # per chunk not yet acknowledged
        self._num_sent = 0
        self._quiet_since = time.monotonic()

    async def pump(self, chunks: AsyncGenerator[LMChunk, None]) -> None:
        """Send all `chunks`; raises Cancelled, or what the generator raises. The generator is closed in any case."""
        try:
            while (item := await self._next(chunks)) is not None:
                await self._wait_until(self._has_room)
                self._send(Envelope(self._utterance, self._slot.address, item.chunk), item)
        finally:
            await chunks.aclose()

    async def settle(self) -> None:
        """Wait until the decoder has answered every chunk or the utterance is given up, then give the slot back."""
        try:
            await self._wait_until(lambda: self._on_the_way() == 0)
        except (Cancelled, DecoderStalled):
            pass  # whoever cancelled has been answered; a stalled decoder answers nobody
        finally:
            self._slot.release()

    async def _next(self, chunks: AsyncGenerator[LMChunk, None]) -> LMChunk | None:
        pending = asyncio.ensure_future(anext(chunks, None))
        try:
            while not pending.done():
                await asyncio.wait({pending}, timeout=self._limits.poll_s)
                self._check()
                self._probe_if_quiet()
            return pending.result()
        finally:
            if not pending.done():
                pending.cancel()
                await asyncio.wait({pending})

    async def _wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + self._limits.stall_s
        num_acknowledged = self._slot.num_acknowledged
        while not condition():
            await asyncio.sleep(self._limits.poll_s / 4)
            self._check()
            if self._slot.num_acknowledged != num_acknowledged:
                num_acknowledged = self._slot.num_acknowledged
                deadline = time.monotonic() + self._limits.stall_s
            if time.monotonic() > deadline:
                raise DecoderStalled(f"no chunk acknowledged for {self._limits.stall_s:.0f} s")

    def _check(self) -> None:
        if self._slot.is_cancelled:
            raise Cancelled("the client cancelled the request")

    def _probe_if_quiet(self) -> None:
        """Ask after the client when nothing has gone to the decoder for a while: a chunk asks by itself."""
        if time.monotonic() - self._quiet_since >= self._limits.probe_s:
            self._send(Envelope(self._utterance, self._slot.address, None), None)

    def _on_the_way(self) -> int:
        while self._num_sent - len(self._frames_on_the_way) < self._slot.num_acknowledged:
            self._frames_on_the_way.popleft()
        return len(self._frames_on_the_way)

    def _has_room(self) -> bool:
        return self._on_the_way() < self._limits.max_chunks and sum(self._frames_on_the_way) < self._limits.max_frames

    def _send(self, envelope: Envelope, item: LMChunk | None) -> None:
        tensors = [record_tensor(CHUNK, envelope.to_record())]
        if item is not None:
            self._num_sent += 1
            self._frames_on_the_way.append(0 if item.codes is None else item.codes.shape[1])
            if item.codes is not None:
                tensors.append(array_tensor(CODES, item.codes))
        self._sender.send(pb_utils.InferenceResponse(tensors))
        self._quiet_since = time.monotonic()
