"""Pacing of an utterance: when to send the next frames to the decoder as a chunk, and how many.

sent      │ first │  2  │   4   │    8    │        steady         │ …
played            ├───────────────────────────────────────► dry: the player has played all audio sent so far
                                ^ now: send a chunk if it might arrive at `dry`, given the decoder's load
"""

import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ChunkPolicy:
    """Chunk sizes that the client requested, and constants of the codec.

    Attributes:
        first_frames: Minimum number of frames in the first chunk, which has more if the decoder is slow.
        playout_s: Seconds of audio that the player buffers before it starts.
        held_frames: Number of frames that the decoder withholds until later ones arrive: the codec's right context.
        deterministic: True for chunk sizes that do not depend on timing. The first chunk then has its minimum size, and
            each later one twice the size of the previous one, up to `steady_frames`.
        blocks: Chunk sizes of a codec that decodes only whole blocks; the last size repeats. Empty for other codecs.
        silent_frames: Number of frames at the start of the reply whose samples are silence and are not sent.
    """

    first_frames: int = 4
    steady_frames: int = 25
    playout_s: float = 0.0
    frame_rate: float = 25.0
    held_frames: int = 0
    deterministic: bool = False
    blocks: tuple[int, ...] = ()
    silent_frames: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.first_frames <= self.steady_frames:
            raise ValueError(
                f"expected 1 <= first_frames <= steady_frames, got {self.first_frames} and {self.steady_frames}"
            )
        if min(self.held_frames, self.silent_frames) < 0:
            raise ValueError(f"expected held_frames and silent_frames >= 0, got {self}")
        if not self.frame_rate > 0 or not 0 <= self.playout_s < math.inf:
            raise ValueError(f"expected frame_rate > 0, finite playout_s >= 0, got {self}")

    @property
    def unplayed_frames(self) -> int:
        """Number of frames of the first chunk that are not played at once: silent frames and right context."""
        return self.silent_frames + self.held_frames

    @property
    def least_audible(self) -> int:
        return max(1, self.first_frames - self.silent_frames)

    @property
    def sizes(self) -> list[int]:
        return sorted({self.round_down(num_frames) for num_frames in range(1, self.steady_frames + 1)})

    @property
    def first_sizes(self) -> list[int]:
        """Numbers of audible frames in the first chunk while the decoder is idle, in ascending order.

        The player must not run dry before the second chunk is decoded. One frame lasts long enough only if chunk sizes
        do not depend on timing, or if no frame can follow without input.
        """
        return [self.first_frames] if self.first_frames > 2 else list(range(1, min(2, self.steady_frames) + 1))

    def round_down(self, num_frames: int) -> int:
        """Return the largest permitted chunk size that is at most `num_frames`, which must be at least 1.

        Permitted sizes are `steady_frames` and the powers of two below it. With few sizes, windows of different
        utterances often have equal shapes, and can be decoded as one batch.
        """
        return self.steady_frames if num_frames >= self.steady_frames else 1 << (num_frames.bit_length() - 1)


@dataclass(frozen=True, slots=True)
class DecodingTime:
    """Time that the decoder takes for a batch: `batch_s`, plus `window_s` per window, plus `frame_s` per new frame."""

    batch_s: float = 0.0
    window_s: float = 0.0
    frame_s: float = 0.0


SPARE_FRAMES = 0.1  # by which a chunk is longer than a round of its size; a busier decoder needs longer chunks


@dataclass(frozen=True, slots=True)
class DecoderLoad:
    """Measured speed and load of the decoder.

    Attributes:
        latency_s: Recent upper bound on the time from sending an urgent chunk to its audio.
        has_graphs: True if chunks of permitted sizes (`ChunkPolicy.sizes`) are decoded faster than others.
        frame_gap_s: Recent upper bound on the time between two frames of an utterance; 0 if it is unknown.
    """

    latency_s: float = 0.0
    time: DecodingTime = DecodingTime()
    num_speaking: int = 1
    has_graphs: bool = False
    frame_gap_s: float = 0.0

    def round_s(self, num_frames: int) -> float:
        """Return the time to decode one chunk of `num_frames` frames for each utterance that generates speech."""
        window_s = self.time.window_s + num_frames * self.time.frame_s
        return self.time.batch_s + self.num_speaking * window_s


def ignore_gap(gap_s: float) -> None:
    """Do nothing with the time between two frames."""


async def at_once() -> None:
    """Return without waiting, for a player that accepts any amount of audio."""


IDLE = DecoderLoad()
LATENCIES = 2  # send a chunk this many decoder latencies early, because latencies vary


class Pacer:
    """Pacing of one utterance, for a player that starts with the first chunk and plays at the codec's rate.

    A chunk is sent when it has `steady_frames` frames, or when the player may run dry soon. The margin is the longest
    recent wait for a frame plus twice the decoder's latency. A round (`DecoderLoad.round_s`) of larger chunks replaces
    the second latency if it is longer. Chunks are therefore small if frames are generated no faster than they are
    played. Otherwise they grow with the buffered audio, at most doubling each time. A chunk is limited so that the
    player does not run dry even if every utterance sends as large a one at once. It lasts at least as long as a round
    of its size, because shorter chunks would overload the decoder.

    Attributes:
        is_stalled: True while no frame can follow without external input; all ready frames are then sent.
    """

    def __init__(
        self,
        policy: ChunkPolicy,
        load: Callable[[], DecoderLoad] = lambda: IDLE,
        clock: Callable[[], float] = time.monotonic,
        wait_for_turn: Callable[[], Awaitable[None]] = at_once,
        note_gap: Callable[[float], None] = ignore_gap,
    ) -> None:
        self.policy = policy
        self.wait_for_turn = wait_for_turn
        self._note_gap = note_gap
        self._load = load
        self._clock = clock
        # time at which the player will have played all audio sent so far; None before the first chunk
        self._dry_s: float | None = None
        # If every utterance sends the same chunks: time at which the decoder is done with them, and how much later than
        # the first player the last one begins.
        self._busy_s = self._spread_s = 0.0
        self._num_last = 0  # audible frames of the last chunk
        self._num_blocks = 0  # blocks sent
        self._num_left = 0  # frames that remained unsent after the last decision
        self._gap_s = 1 / policy.frame_rate
        self._longest_gap_s = 0.0  # longest wait for a frame so far; 0 until there are two
        self._grown_s: float | None = None
        self.is_stalled = False

    def num_to_send(self, num_ready: int) -> int:
        """Return how many of the `num_ready` unsent frames to send now as one chunk, or 0 to wait."""
        if self.policy.blocks:
            return self._block(num_ready)
        if self.policy.deterministic:
            return self._fixed(num_ready)
        now = self._clock()
        load = self._load()
        if self.is_stalled:
            return self._size_before_wait(num_ready, now, load)
        self._watch(num_ready, now)
        size = self._first(num_ready, load) if self._dry_s is None else self._next(num_ready, now, load)
        if size:
            self._play(size, now, load)
        self._num_left = num_ready - size
        return size

    def _block(self, num_ready: int) -> int:
        blocks = self.policy.blocks
        size = blocks[min(self._num_blocks, len(blocks) - 1)]
        if num_ready < size:
            return 0
        self._num_blocks += 1
        return size

    def _fixed(self, num_ready: int) -> int:
        policy = self.policy
        unplayed = 0 if self._num_last else policy.unplayed_frames
        size = unplayed + (policy.round_down(2 * self._num_last) if self._num_last else policy.least_audible)
        if num_ready < size:
            return 0
        self._num_last = size - unplayed
        return size

    def _size_before_wait(self, num_ready: int, now: float, load: DecoderLoad) -> int:
        """Return the size of the chunk to send before a wait for external input, or 0; the wait counts as no gap."""
        unplayed = self.policy.unplayed_frames if self._dry_s is None else 0
        self._grown_s = None
        self._num_left = 0
        if num_ready <= unplayed:
            return 0
        size = unplayed + self.policy.round_down(num_ready - unplayed)
        self._play(size, now, load)
        return size

    def _watch(self, num_ready: int, now: float) -> None:
        """Update the estimated time between frames: a maximum that decays."""
        if num_ready <= self._num_left:
            return
        if self._grown_s is not None:
            gap_s = now - self._grown_s
            self._gap_s = max(gap_s, self._gap_s + (gap_s - self._gap_s) / 16)
            self._longest_gap_s = max(gap_s, self._longest_gap_s)
            self._note_gap(gap_s)
        self._grown_s = now

    def _first(self, num_ready: int, load: DecoderLoad) -> int:
        """Return the size of the first chunk, or 0 to wait.

        Its audio must last until the smallest chunk of every utterance has been generated and decoded. With CUDA
        graphs, it includes further ready frames, because a further chunk would take more time.
        """
        policy = self.policy
        smallest = self._smallest(load)
        wait_s = self._wait_s(load)
        more_s = max(load.round_s(smallest), 0 if smallest == 1 else smallest * wait_s)
        needed = max(smallest, math.ceil((load.latency_s + wait_s + more_s) * policy.frame_rate))
        decoded = policy.silent_frames + min(max(policy.least_audible, needed), policy.steady_frames)
        if load.has_graphs:
            decoded = next((size for size in policy.sizes if size >= decoded), decoded)
            decoded = max(decoded, policy.round_down(max(1, num_ready - policy.held_frames)))
        size = policy.held_frames + decoded
        return size if num_ready >= size else 0

    def _wait_s(self, load: DecoderLoad) -> float:
        """Return the estimated wait for a frame after the first chunk, in seconds.

        The usual estimate is limited to the longest wait so far plus the decoder's latency. Before the second frame,
        that wait is the one of other utterances. The limit is low while the decoder is idle, because load that delays
        frames also delays the decoder.
        """
        longest_gap_s = self._longest_gap_s or load.frame_gap_s
        return min(self._gap_s, longest_gap_s + load.latency_s) if longest_gap_s else self._gap_s

    def _smallest(self, load: DecoderLoad) -> int:
        """Return the size of the smallest chunk that lasts at least as long as a round of its size."""
        size = 1
        policy = self.policy
        while size < policy.steady_frames and load.round_s(size) * policy.frame_rate > size - SPARE_FRAMES:
            size *= 2
        return min(size, policy.steady_frames)

    def _next(self, num_ready: int, now: float, load: DecoderLoad) -> int:
        assert self._dry_s is not None
        policy = self.policy
        smallest = self._smallest(load)
        largest = min(max(smallest, 2 * self._num_last), policy.steady_frames)
        answer_s = load.latency_s + max((LATENCIES - 1) * load.latency_s, load.round_s(largest))
        is_urgent = self._dry_s - now <= answer_s + self._gap_s
        if num_ready < smallest or not (is_urgent or num_ready >= policy.steady_frames):
            return 0
        size = policy.round_down(min(num_ready, largest))
        ahead_s = self._dry_s + self._spread_s - max(now, self._busy_s)
        while size > smallest and load.latency_s + load.round_s(size) > ahead_s:
            size = policy.round_down(size - 1)
        return size

    def _play(self, size: int, now: float, load: DecoderLoad) -> None:
        """Estimate when a chunk that is sent will have been decoded, and when it will have been played."""
        self._busy_s = max(now, self._busy_s) + load.round_s(size)
        played_s = now + load.latency_s
        if self._dry_s is None:
            self._spread_s = load.round_s(size)
            begins_s = played_s + self.policy.playout_s
            self._num_last = size - self.policy.unplayed_frames
        else:
            begins_s = max(self._dry_s, played_s)
            self._num_last = size
        self._dry_s = begins_s + self._num_last / self.policy.frame_rate
