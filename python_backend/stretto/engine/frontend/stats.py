"""Front-end counters of replies in progress; the scheduler's own are `SharedStats`."""

from collections.abc import Sequence
from dataclasses import dataclass

from stretto.engine.request.pairs import num_guided
from stretto.records.chunk import GuidanceChange
from stretto.records.sampling import SamplingConfig


@dataclass
class Stats:
    """Counters since start-up, for metrics.

    Attributes:
        active: Replies in progress.
        pairs: Guided replies among them.
        finished_total: Replies finished.
        frames_total: Frames generated.
        unguided_total: Frames of requests with policy `always` sampled without guidance. Any value but 0 is a bug.
        frames_unguided_by_policy_total: Unguided frames of guided requests with another policy.
    """

    active: int = 0
    pairs: int = 0
    finished_total: int = 0
    frames_total: int = 0
    unguided_total: int = 0
    frames_unguided_by_policy_total: int = 0


class FrameStats:
    """Frame counts of one reply, added to the counters chunk by chunk."""

    def __init__(self, stats: Stats, sampling: SamplingConfig):
        self._stats = stats
        self._is_guided, self._policy = sampling.guidance_scale != 1.0, sampling.policy
        self._num_frames = self._num_unguided = 0

    def see(self, num_frames: int, changes: Sequence[GuidanceChange]) -> None:
        """Count the frames up to `num_frames`, given the frames in `changes` at which guidance stopped or resumed."""
        self._stats.frames_total += num_frames - self._num_frames
        self._num_frames = num_frames
        if not self._is_guided:
            return
        num_unguided = num_frames - num_guided([change.frame for change in changes], num_frames)
        if self._policy == "always":
            self._stats.unguided_total += num_unguided - self._num_unguided
        else:
            self._stats.frames_unguided_by_policy_total += num_unguided - self._num_unguided
        self._num_unguided = num_unguided
