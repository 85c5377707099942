"""Assignment of phonemes to frames."""

import random

import numpy as np
import pytest

from training.tiny.encoded import frame_starts, phoneme_of_frames


@pytest.mark.parametrize("seed", range(50))
def test_every_phoneme_has_frames_in_order(seed: int) -> None:
    rng = random.Random(seed)
    ends = np.cumsum([rng.uniform(0.25, 5) for _ in range(rng.randint(1, 40))]).tolist()
    num_frames = max(len(ends), int(np.ceil(ends[-1])))
    starts = frame_starts(ends, num_frames)
    frames = phoneme_of_frames(starts, num_frames)
    assert sorted(set(frames.tolist())) == list(range(len(ends)))
    assert (np.diff(frames) >= 0).all()
