"""Frames are counted once while a reply runs, and unguided frames are counted separately."""

from dataclasses import replace

import pytest

from stretto.engine.reply_stats import FrameStats, Stats
from stretto.records.chunk import GuidanceChange
from stretto.records.sampling import SamplingConfig, SegmentSampling

GUIDED = SamplingConfig(SegmentSampling(0.0), SegmentSampling(0.0), guidance_scale=2.0)


@pytest.mark.parametrize("step", [1, 2, 3, 7, 12])
@pytest.mark.parametrize("turns", [[], [0], [5], [0, 3], [2, 4, 9], [11]])
def test_frame_stats_are_independent_of_row_grouping(step: int, turns: list[int]) -> None:
    """Guidance changes before each of `turns`, and a change is known once its row has arrived."""
    stats = Stats()
    counts = FrameStats(stats, replace(GUIDED, policy="adaptive"))
    is_guided = [sum(turn <= frame for turn in turns) % 2 == 0 for frame in range(12)]
    for num_frames in [*range(0, 12, step), 12, 12]:
        known = [turn for turn in turns if turn < num_frames]
        counts.record(num_frames, [GuidanceChange(turn, index % 2 == 1) for index, turn in enumerate(known)])
        assert stats.frames_total == num_frames
        assert stats.frames_unguided_by_policy_total == is_guided[:num_frames].count(False)
    assert stats.unguided_total == 0


def test_unguided_frames_without_policy_are_counted_as_errors() -> None:
    stats = Stats()
    FrameStats(stats, GUIDED).record(4, [GuidanceChange(1, False)])
    assert (stats.unguided_total, stats.frames_unguided_by_policy_total) == (3, 0)


def test_replies_without_guidance_have_no_unguided_frames() -> None:
    stats = Stats()
    for _ in range(2):
        FrameStats(stats, replace(GUIDED, guidance_scale=1.0)).record(4, [])
    assert (stats.frames_total, stats.unguided_total) == (8, 0)
