"""Speech to a caller: samples of replies, sent as 20 ms Opus frames by the RTP clock."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from fractions import Fraction
from typing import Any

import av
import numpy as np
from aiortc import MediaStreamTrack
from aiortc.mediastreams import MediaStreamError
from numpy.typing import NDArray

from stretto_gateway.encoding import DEFAULT_RATE

FRAME = DEFAULT_RATE // 50  # samples of 20 ms
FRAME_S = 0.02
# RFC 7587: the clock of Opus, and its ticks per frame
RTP_RATE = 48_000
RTP_FRAME = 960
MAX_BEHIND_S = 0.2  # beyond, frames are left out instead of sent at once
MAX_QUEUED_S = 10.0  # speech that waits to be played; a reply that has more waits with it
FULL = round(MAX_QUEUED_S * DEFAULT_RATE)
# samples that may wait in a live call; -44 dB of full scale
LIVE_SAMPLES = 2 * FRAME
QUIET = 200
BIT_RATE = 32_000  # of mono speech at 24 kHz: transparent, as in the gateway's Opus files
SILENT_PACKET = b"\xf8\xff\xfe"  # RFC 6716: a frame of CELT, mono, 20 ms, without energy; encoding zeros costs 0.4 ms


class Playout:
    """Queue of a caller's speech: pcm16 at 24 kHz, and the ends of replies in it.

    Attributes:
        is_live: True if the speech is generated at the pace of the call. Then waiting speech is delay, caused by late
            packets or another clock, so quiet frames are left out until LIVE_SAMPLES samples wait.
        finished: Ids of replies that were played to their end.
        playing: Id of the reply whose audio was added last, until it is played or cleared.
    """

    def __init__(self) -> None:
        self.is_live = False
        self._pcm = bytearray()
        self._num_played = self._num_added = 0
        self._ends = deque[tuple[int, str]]()  # position behind the last sample of a reply, and its id
        self._has_room = asyncio.Event()
        self._has_room.set()
        self.finished: asyncio.Queue[str] = asyncio.Queue()
        self.playing = ""

    @property
    def num_queued(self) -> int:
        return len(self._pcm) // 2

    async def add(self, response_id: str, pcm: bytes) -> None:
        """Append samples of a reply, pcm16; wait while more than MAX_QUEUED_S are queued."""
        self.playing = response_id
        self._pcm += pcm
        self._num_added += len(pcm) // 2
        if self.num_queued > FULL:
            self._has_room.clear()
        await self._has_room.wait()

    def end(self, response_id: str) -> None:
        """Mark a reply as complete."""
        if response_id == self.playing:
            self._ends.append((self._num_added, response_id))

    def clear(self) -> str:
        """Drop the samples that have not been played; return the id of their reply, or an empty text for none."""
        self._num_played += self.num_queued
        self._pcm.clear()
        self._ends.clear()
        self._has_room.set()
        cleared = self.playing
        self.playing = ""
        return cleared

    def next_frame(self) -> NDArray[np.int16] | None:
        """Remove and return the next frame, int16 [480]; None if no frame is ready.

        The last frame of a reply is padded. Before that, an incomplete frame waits for its other samples.
        """
        frame = self._pop_frame()
        while self.is_live and self.num_queued > LIVE_SAMPLES and frame is not None and np.abs(frame).max() < QUIET:
            frame = self._pop_frame()
        return frame

    def _pop_frame(self) -> NDArray[np.int16] | None:
        num_left = self._ends[0][0] - self._num_played if self._ends else FRAME
        taken = min(FRAME, num_left)
        if self.num_queued < taken:
            return None
        frame = np.zeros(FRAME, np.int16)
        frame[:taken] = np.frombuffer(self._pcm[: 2 * taken], "<i2")
        del self._pcm[: 2 * taken]
        self._num_played += taken
        if self.num_queued <= FULL:
            self._has_room.set()
        while self._ends and self._ends[0][0] <= self._num_played:
            ended = self._ends.popleft()[1]
            self.finished.put_nowait(ended)
            self.playing = "" if ended == self.playing else self.playing
        return frame if taken else None


class OpusEncoder:
    """Encoder of a call's frames to Opus packets."""

    def __init__(self) -> None:
        codec: Any = av.CodecContext.create("libopus", "w")
        codec.bit_rate = BIT_RATE
        codec.format = "s16"
        codec.layout = "mono"
        codec.sample_rate = DEFAULT_RATE
        codec.time_base = Fraction(1, DEFAULT_RATE)
        codec.options = {"application": "voip", "frame_duration": "20"}
        self._codec = codec
        self._num_samples = 0
        self._is_clean = True  # True if the encoder's look-ahead of 6.5 ms has no speech

    def encode(self, pcm: NDArray[np.int16] | None) -> bytes:
        """Return the packet of a frame, int16 [480]; None for silence."""
        if pcm is None and self._is_clean:
            return SILENT_PACKET
        self._is_clean = pcm is None
        samples = np.zeros(FRAME, np.int16) if pcm is None else pcm
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate = DEFAULT_RATE
        frame.pts = self._num_samples
        frame.time_base = Fraction(1, DEFAULT_RATE)
        self._num_samples += FRAME
        packets = [bytes(packet) for packet in self._codec.encode(frame)]
        assert len(packets) == 1, "the frames have the size of the codec's"
        return packets[0]


class FramePacer:
    """Times of a call's frames: 20 ms apart, from the first on."""

    def __init__(
        self, clock_s: Callable[[], float] | None = None, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ):
        self._clock_s = clock_s or asyncio.get_running_loop().time
        self._sleep = sleep
        self._begun_s: float | None = None
        self._next = 0

    async def turn(self) -> int:
        """Wait for the time of the next frame and return its number, skipping frames that are far too late."""
        now_s = self._clock_s()
        if self._begun_s is None:
            self._begun_s = now_s
        early_s = self._begun_s + self._next * FRAME_S - now_s
        if early_s > 0:
            await self._sleep(early_s)
        elif -early_s > MAX_BEHIND_S:
            self._next = int((now_s - self._begun_s) / FRAME_S)
        number = self._next
        self._next = self._next + 1
        return number


class SpeechTrack(MediaStreamTrack):
    """Track that sends a `Playout` as Opus packets, with silence while it is empty."""

    kind = "audio"

    def __init__(self, playout: Playout):
        super().__init__()
        self._playout = playout
        self._pacer = FramePacer()
        self._encoder = OpusEncoder()

    async def recv(self) -> "av.Packet[Any]":
        """Return the next packet once it is due; raise MediaStreamError after the end of the call."""
        number = await self._pacer.turn()
        if self.readyState != "live":
            raise MediaStreamError
        packet = av.Packet(self._encoder.encode(self._playout.next_frame()))
        packet.pts = number * RTP_FRAME
        packet.time_base = Fraction(1, RTP_RATE)
        return packet
