"""When an utterance's frames leave, and how many at once. It knows neither what they are nor where they go.

sent      │ first │  2  │   4   │    8    │        steady         │ …
played            ├───────────────────────────────────────► dry: all that was sent has been played
                                ^ now: a chunk leaves when one that takes twice as long as of late would come at `dry`
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ChunkPolicy:
    """What a client's player needs, and what is known of the codec.

    first_frames: that the first chunk makes heard, at least; more where the decoder is slow. steady_frames: of the
    largest chunk. playout_s: how long the player gathers sound before it starts. frame_rate: of the codec, in Hz.
    held_frames: the codec's right context, which the decoder withholds until what follows it is there.
    deterministic: the first chunk has the least size and each that follows twice that of the one before, up to the
    steady size, whatever the player needs: equal frames are then cut alike in every run.
    blocks: frames of the blocks that the codec decodes as wholes, the last size again and again. Chunks are then these:
    less is not heard, and more is waited for in vain. () for a codec that takes any chunk.
    """

    first_frames: int = 4
    steady_frames: int = 25
    playout_s: float = 0.0
    frame_rate: float = 25.0
    held_frames: int = 0
    deterministic: bool = False
    blocks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.first_frames <= self.steady_frames:
            raise ValueError(f"need 1 <= first <= steady frames, got {self.first_frames} and {self.steady_frames}")
        if self.held_frames < 0 or not self.frame_rate > 0 or not 0 <= self.playout_s < math.inf:
            raise ValueError(f"need held_frames >= 0, frame_rate > 0, finite playout_s >= 0, got {self}")

    def fitting(self, num_frames: int) -> int:
        """The largest chunk of at most `num_frames` >= 1: a power of two or the steady size.

        Few sizes: windows of different utterances then have equal shapes, and decode as one batch.
        """
        return self.steady_frames if num_frames >= self.steady_frames else 1 << (num_frames.bit_length() - 1)

    def reaching(self, num_frames: int) -> int:
        """The smallest of these sizes that has `num_frames` >= 1; the steady size if none has."""
        return min(1 << (num_frames - 1).bit_length(), self.steady_frames)


@dataclass(frozen=True, slots=True)
class DecoderLoad:
    """What the decoder measures. latency_s: from a chunk's leaving to its being heard, at most, of late.

    pace_s: how often each utterance may send a chunk without keeping the decoder too busy.
    """

    latency_s: float = 0.0
    pace_s: float = 0.0


IDLE = DecoderLoad()
LATENCIES = 2  # of the decoder, that a chunk leaves early: it may be twice as large as the one before


class Pacer:
    """Decides for one utterance; follows a player that starts with the first chunk and plays at the codec's rate.

    A chunk leaves when it has the steady size, or when the player's lead falls to twice the decoder's latency and the
    longest recent wait for a frame. So chunks are small where frames come no faster than they are played, and grow with
    the lead where they come faster: by no more than twice at once. None is smaller than what is played in the pace of
    the decoder: whoever sends less at once sends too often, and then all are late.
    stands_still: whether no frame follows before somebody else has done something: all that are ready leave then.
    """

    def __init__(
        self,
        policy: ChunkPolicy,
        load: Callable[[], DecoderLoad] = lambda: IDLE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.policy = policy
        self._load = load
        self._clock = clock
        self._dry_s: float | None = None  # when the player will have played all that was sent; None before the first
        self._num_last = 0  # frames that the last chunk made heard
        self._num_blocks = 0  # that have left
        self._num_left = 0  # frames that stayed behind at the last decision
        self._gap_s = 1 / policy.frame_rate
        self._grown_s: float | None = None
        self.stands_still = False

    def take(self, num_ready: int) -> int:
        """How many of the `num_ready` frames that have not left are to leave now, as one chunk; 0 to wait for more."""
        if self.policy.blocks:
            return self._block(num_ready)
        if self.policy.deterministic:
            return self._fixed(num_ready)
        now, load = self._clock(), self._load()
        if self.stands_still:
            return self._rest(num_ready, now, load)
        self._watch(num_ready, now)
        size = self._first(num_ready, load) if self._dry_s is None else self._next(num_ready, now, load)
        if size:
            self._play(size, now + load.latency_s)
        self._num_left = num_ready - size
        return size

    def _block(self, num_ready: int) -> int:
        """The codec's next block, once it is whole."""
        blocks = self.policy.blocks
        size = blocks[min(self._num_blocks, len(blocks) - 1)]
        if num_ready < size:
            return 0
        self._num_blocks += 1
        return size

    def _fixed(self, num_ready: int) -> int:
        """As many frames as their number alone says."""
        policy, held = self.policy, 0 if self._num_last else self.policy.held_frames
        size = held + (policy.fitting(2 * self._num_last) if self._num_last else policy.first_frames)
        if num_ready < size:
            return 0
        self._num_last = size - held
        return size

    def _rest(self, num_ready: int, now: float, load: DecoderLoad) -> int:
        """All that is ready, in sizes that there are; how long it then stands still tells nothing of frames."""
        held = self.policy.held_frames if self._dry_s is None else 0
        self._grown_s, self._num_left = None, 0
        if num_ready <= held:
            return 0
        size = held + self.policy.fitting(num_ready - held)
        self._play(size, now + load.latency_s)
        return size

    def _watch(self, num_ready: int, now: float) -> None:
        """Learn how long frames let themselves be waited for: the longest wait, forgotten by and by."""
        if num_ready <= self._num_left:
            return
        if self._grown_s is not None:
            gap_s = now - self._grown_s
            self._gap_s = max(gap_s, self._gap_s + (gap_s - self._gap_s) / 16)
        self._grown_s = now

    def _first(self, num_ready: int, load: DecoderLoad) -> int:
        """The size of the first chunk, enough for the wait for one more and the way; 0 while too few are ready."""
        policy = self.policy
        needed = self._smallest(load) + math.ceil((load.latency_s + self._gap_s) * policy.frame_rate)
        size = policy.held_frames + min(max(policy.first_frames, needed), policy.steady_frames)
        return size if num_ready >= size else 0

    def _smallest(self, load: DecoderLoad) -> int:
        """The smallest chunk that lasts as long as the decoder's pace."""
        return self.policy.reaching(max(1, math.ceil(load.pace_s * self.policy.frame_rate)))

    def _next(self, num_ready: int, now: float, load: DecoderLoad) -> int:
        assert self._dry_s is not None
        smallest = self._smallest(load)
        is_urgent = now + LATENCIES * load.latency_s + self._gap_s >= self._dry_s
        if num_ready < smallest or not (is_urgent or num_ready >= self.policy.steady_frames):
            return 0
        return self.policy.fitting(min(num_ready, max(smallest, 2 * self._num_last)))

    def _play(self, size: int, heard_s: float) -> None:
        if self._dry_s is None:
            begins_s, self._num_last = heard_s + self.policy.playout_s, size - self.policy.held_frames
        else:
            begins_s, self._num_last = max(self._dry_s, heard_s), size
        self._dry_s = begins_s + self._num_last / self.policy.frame_rate
