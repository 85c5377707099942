"""Alignment of phonemes with codec frames."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Transcript:
    """Normalised text and its pronunciation.

    Attributes:
        phonemes: Indices into PHONEMES.
        words: Word index of each phoneme; -1 for silence.
    """

    text: str
    phonemes: tuple[int, ...]
    words: tuple[int, ...]


@dataclass(frozen=True)
class Spoken:
    """A transcript with the phoneme of each frame, int64 [T], never decreasing."""

    transcript: Transcript
    voice: str
    phoneme_of_frame: np.ndarray


def frame_starts(ends: Sequence[float], num_frames: int) -> list[int]:
    """Return the first frame of each phoneme, strictly increasing from 0, given the phonemes' ends in frames.

    They are the least-squares fit to the true start times (isotonic regression with pooling).
    """
    count = len(ends)
    assert count <= num_frames, (count, num_frames)
    pools: list[tuple[float, int]] = []
    for index, start in enumerate([0.0, *ends[:-1]]):
        pools.append((start - index, 1))  # start minus index may stay equal but must not decrease
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (b, nb), (a, na) = pools.pop(), pools.pop()
            pools.append(((a * na + b * nb) / (na + nb), na + nb))
    slack = [value for value, size in pools for _ in range(size)]
    starts = [index + min(max(0, round(value)), num_frames - count) for index, value in enumerate(slack)]
    return [0, *starts[1:]]


def phoneme_of_frames(starts: Sequence[int], num_frames: int) -> np.ndarray:
    """Return the phoneme index of each frame, int64 [T]."""
    return np.searchsorted(np.asarray(starts), np.arange(num_frames), side="right") - 1
