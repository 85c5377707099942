"""The arithmetic behind the figures for VITA-Audio's schedules."""

import pytest

from benchmarks.gpu.schedules import allowed, passes
from stretto.families.vita_audio.family import SCHEDULES


def test_forward_passes_match_hand_counts() -> None:
    """Words alternate with marked codes as in training; the first audio turn has 4 ids in Balance, 10 in Boost."""
    assert [passes(name, 1) for name in SCHEDULES] == [3, 1, 1, 1]
    assert passes("vanilla", 31) == 51  # 11 ids with 8 codes, twice 14 with 8, and of the next 4 + 1 + 7
    assert passes("turbo", 31) == 5  # 11 ids each


def test_allowed_speed_up_is_the_ratio_of_weights_read_per_id() -> None:
    """28 layers, whose size relative to the head is the published one."""
    sizes = {"hidden_size": 448, "intermediate_size": 2368, "num_attention_heads": 14, "num_key_value_heads": 2}
    config = {**sizes, "num_hidden_layers": 28, "vocab_size": 21_009}
    assert allowed((8192, 0), config) == 1.0
    assert allowed((1, 10), config) == pytest.approx(4.98, abs=0.01)
