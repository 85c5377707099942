"""Recordings of speech for tests, from the samples of the bundled model."""

from functools import cache
from pathlib import Path

import numpy as np
import soundfile
import soxr

SENTENCE = Path(__file__).parent / "data/speech/garden_door_rms.ogg"


@cache
def sentence(sample_rate: int) -> np.ndarray:
    """Return a spoken sentence of about 3 s with little silence at its ends, float32 [n]."""
    pcm, rate = soundfile.read(SENTENCE, dtype="float32")
    resampled: np.ndarray = soxr.resample(pcm, rate, sample_rate)
    return resampled


def speech(num_samples: int, sample_rate: int) -> np.ndarray:
    """Return speech of any length without pauses, float32 [n]: the same second of a sentence again and again."""
    return np.resize(sentence(sample_rate)[sample_rate // 2 : 3 * sample_rate // 2], num_samples)
