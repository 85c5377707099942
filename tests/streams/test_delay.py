"""The delay pattern and its inverse, in one pass and row by row, against a loop."""

import numpy as np
import pytest

from stretto.streams.layout import Undelayer, delay_codes, undelay_codes

DELAYS = [(0,), (0, 1), (0, 1, 2, 3, 4, 5, 6, 7), (3, 4, 5), (0, 0, 2), (2, 0, 1)]
PAD = -1


def frames(num_codebooks: int, num_frames: int) -> np.ndarray:
    return np.arange(num_codebooks * num_frames).reshape(num_codebooks, num_frames)


@pytest.mark.parametrize("delays", DELAYS)
@pytest.mark.parametrize("num_frames", [0, 1, 2, 9])
def test_delay_codes_match_the_loop_and_round_trip(delays: tuple[int, ...], num_frames: int) -> None:
    codes = frames(len(delays), num_frames)
    rows = delay_codes(codes, delays, PAD)
    assert rows.shape == (num_frames + max(delays), len(delays))
    for row in range(len(rows)):
        for k, delay in enumerate(delays):
            frame = row - delay
            assert rows[row, k] == (codes[k, frame] if 0 <= frame < num_frames else PAD)
    assert np.array_equal(undelay_codes(rows, delays), codes)


@pytest.mark.parametrize("delays", DELAYS)
@pytest.mark.parametrize("step", [1, 2, 5])
def test_incremental_undelay_matches_the_whole(delays: tuple[int, ...], step: int) -> None:
    codes = frames(len(delays), 11)
    undelayer, taken = Undelayer(delays), []
    for index, row in enumerate(delay_codes(codes, delays, PAD)):
        undelayer.push(row[None])
        assert undelayer.num_ready + sum(part.shape[1] for part in taken) == max(0, index + 1 - max(delays))
        if undelayer.num_ready >= step:
            taken.append(undelayer.pop_frames(step))
    if undelayer.num_ready:
        taken.append(undelayer.pop_frames(undelayer.num_ready))
    assert np.array_equal(np.concatenate(taken, 1), codes)
