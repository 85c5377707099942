"""Utterances with text, phonemes, words, and codes for each frame."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stretto.families.tiny.family import PHONEMES
from training.tiny.synthesise import Utterance

FRAME_RATE = 25.0
PHONEME_ID = {name: index for index, name in enumerate(PHONEMES)}


@dataclass(frozen=True)
class Transcript:
    """Text and pronunciation.

    Attributes:
        text: Normalised text.
        phonemes: Indices into PHONEMES.
        words: Word index of each phoneme; -1 for silence.
    """

    text: str
    phonemes: tuple[int, ...]
    words: tuple[int, ...]


@dataclass(frozen=True)
class Spoken:
    """A transcript with audio.

    Attributes:
        phoneme_of_frame: Index of each frame's phoneme, int64 [T], never decreasing.
        codes: Codes, uint8 [T, K].
    """

    transcript: Transcript
    voice: str
    phoneme_of_frame: np.ndarray
    codes: np.ndarray


def frame_starts(ends_s: Sequence[float], num_frames: int, frame_rate: float = FRAME_RATE) -> list[int]:
    """Return the first frame of each phoneme; the frames strictly increase from 0, so each phoneme has a frame.

    They are the least-squares fit to the true start times (isotonic regression with pooling).
    """
    count = len(ends_s)
    assert count <= num_frames, (count, num_frames)
    pools: list[tuple[float, int]] = []
    for index, start_s in enumerate([0.0, *ends_s[:-1]]):
        pools.append((start_s * frame_rate - index, 1))  # start minus index may stay equal but must not decrease
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (b, nb), (a, na) = pools.pop(), pools.pop()
            pools.append(((a * na + b * nb) / (na + nb), na + nb))
    slack = [value for value, size in pools for _ in range(size)]
    starts = [index + min(max(0, round(value)), num_frames - count) for index, value in enumerate(slack)]
    return [0, *starts[1:]]


def phoneme_of_frames(starts: Sequence[int], num_frames: int) -> np.ndarray:
    """Return the phoneme index of each frame, int64 [T]."""
    return np.searchsorted(np.asarray(starts), np.arange(num_frames), side="right") - 1


def encode_utterance(utterance: Utterance, codes: np.ndarray) -> Spoken | None:
    """Combine an utterance with its codes [T, K]; return None if it has more phonemes than frames."""
    phonemes = tuple(PHONEME_ID[name] for name in utterance.phonemes)
    if len(phonemes) > len(codes):
        return None
    frames = phoneme_of_frames(frame_starts(utterance.ends_s, len(codes)), len(codes))
    return Spoken(Transcript(utterance.text, phonemes, utterance.words), utterance.voice, frames, codes)
