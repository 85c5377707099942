"""Counters of replies and live sessions."""

from collections.abc import Sequence
from dataclasses import dataclass

from stretto.engine.protocol import num_guided
from stretto.records.chunk import GuidanceChange
from stretto.records.sampling import SamplingConfig


@dataclass
class Stats:
    """Counters since start-up, published as metrics.

    Attributes:
        pairs: Number of active replies that are guided.
        unguided_total: Frames sampled without guidance in requests with policy `always`. Any value but 0 is a bug.
        frames_unguided_by_policy_total: Frames sampled without guidance in guided requests with another policy.
        live_refused_total: Live sessions that were refused because too many were open.
        live_late_frames_total: Frames that were read later than one frame duration after they were due.
        live_lag_frames: Largest number of unread frames in any open session.
        live_tick_seconds_total: Sum of the times from when a frame was due until it was read.
        live_ticks_20ms_total: Frames that were read at most 20 ms after they were due. The counters for 40 and 80 ms
            are analogous.
    """

    active: int = 0
    pairs: int = 0
    finished_total: int = 0
    frames_total: int = 0
    unguided_total: int = 0
    frames_unguided_by_policy_total: int = 0
    live_sessions: int = 0
    live_refused_total: int = 0
    live_frames_total: int = 0
    live_late_frames_total: int = 0
    live_lag_frames: int = 0
    live_ticks_total: int = 0
    live_tick_seconds_total: float = 0.0
    live_ticks_20ms_total: int = 0
    live_ticks_40ms_total: int = 0
    live_ticks_80ms_total: int = 0

    def note_tick(self, late_s: float, frame_s: float) -> None:
        """Record that a frame of a live session was read."""
        self.live_ticks_total += 1
        self.live_tick_seconds_total += late_s
        self.live_late_frames_total += late_s > frame_s
        self.live_ticks_20ms_total += late_s <= 0.02
        self.live_ticks_40ms_total += late_s <= 0.04
        self.live_ticks_80ms_total += late_s <= 0.08


class FrameStats:
    """Counter of one reply's frames, which adds them to the shared counters with each chunk."""

    def __init__(self, stats: Stats, sampling: SamplingConfig):
        self._stats = stats
        self._is_guided = sampling.has_pair
        self._policy = sampling.policy
        self._num_frames = self._num_unguided = 0

    def record(self, num_frames: int, changes: Sequence[GuidanceChange]) -> None:
        """Count the frames generated since the last call, and how many of them were sampled without guidance."""
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
