"""The arithmetic behind the figures for VITA-Audio's schedules."""

import pytest

from benchmarks.schedules import CONFIG, LAYERS, allowed, passes
from stretto.families.vita_audio.family import SCHEDULES


def test_forward_passes_match_hand_counts() -> None:
    """Words alternate with marked codes as in training; the first audio turn has 4 ids in Balance, 10 in Boost."""
    assert [passes(name, 1) for name in SCHEDULES] == [3, 1, 1, 1]
    assert passes("vanilla", 31) == 51  # 11 ids with 8 codes, twice 14 with 8, and of the next 4 + 1 + 7
    assert passes("turbo", 31) == 5  # 11 ids each


def test_allowed_speed_up_is_the_ratio_of_weights_read_per_id() -> None:
    assert allowed((8192, 0)) == 1.0
    assert allowed((1, 10)) == pytest.approx(4.98, abs=0.01)
    head, layer = (
        CONFIG["hidden_size"] * CONFIG["vocab_size"],
        CONFIG["hidden_size"] * (3 * CONFIG["intermediate_size"]),
    )
    assert head / layer == pytest.approx(168_072 / (3 * 18_944), rel=0.01)  # as published
    assert LAYERS == 28
