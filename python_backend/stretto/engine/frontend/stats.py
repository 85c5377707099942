"""What the front end counts while replies are on their way; the scheduler's own are in `shared_stats.py`."""

from collections.abc import Sequence
from dataclasses import dataclass

from stretto.engine.request.pairs import num_guided
from stretto.records.chunk import GuidanceChange
from stretto.records.sampling import SamplingConfig


@dataclass
class Stats:
    """Counters since the start, for metrics.

    active, pairs: replies, and guided ones among them, being generated now. unguided_total: frames of guided requests
    that were sampled without guidance though their policy is `always`; any number but zero is a bug.
    frames_unguided_by_policy_total: those of requests with another policy.
    """

    active: int = 0
    pairs: int = 0
    finished_total: int = 0
    frames_total: int = 0
    unguided_total: int = 0
    frames_unguided_by_policy_total: int = 0


class FrameStats:
    """Adds the frames of one reply to the counters, a chunk at a time."""

    def __init__(self, stats: Stats, sampling: SamplingConfig):
        self._stats = stats
        self._is_guided, self._policy = sampling.guidance_scale != 1.0, sampling.policy
        self._num_frames = self._num_unguided = 0

    def see(self, num_frames: int, changes: Sequence[GuidanceChange]) -> None:
        """Count what is new: the reply stands at `num_frames`, and `changes` says where guidance went and came back."""
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
