"""Audio that came before is not tokenised again."""

import numpy as np

from stretto.families.opuslm.heard_codes import HeardCodes
from stretto.families.remembered import REMEMBERED
from tests.fakes import FrameCounter


class Loudness:
    """Hears the first sample, and one frame more than the codec; counts how often it listens."""

    def __init__(self) -> None:
        self.num_heard = 0

    def encode(self, pcm: np.ndarray) -> np.ndarray:
        self.num_heard += 1
        return np.full(len(pcm) // 320 + 1, int(pcm[0]), np.int64)


def audio(value: int, num_frames: int = 2) -> np.ndarray:
    return np.full(320 * num_frames, value, np.float32)


def test_codes_go_as_far_as_both_tokenizers() -> None:
    codes = HeardCodes(FrameCounter(320, 8, 12), Loudness()).encode(audio(7))
    assert codes.tolist() == [[7, 7], *[[0, 1]] * 8]


def test_the_same_audio_is_heard_once_and_other_audio_again() -> None:
    tokenizer = Loudness()
    heard = HeardCodes(FrameCounter(320, 8, 12), tokenizer)
    for value, length in ((1, 2), (2, 2), (1, 2), (1, 3), (2, 2)):
        assert heard.encode(audio(value, length))[0].tolist() == [value] * length
    assert tokenizer.num_heard == 3


def test_what_was_not_asked_for_longest_is_forgotten_first() -> None:
    tokenizer = Loudness()
    heard = HeardCodes(FrameCounter(320, 8, 12), tokenizer)
    for value in range(REMEMBERED):
        heard.encode(audio(value))
    heard.encode(audio(0))
    heard.encode(audio(REMEMBERED))
    assert tokenizer.num_heard == REMEMBERED + 1
    heard.encode(audio(0))
    assert tokenizer.num_heard == REMEMBERED + 1
    assert heard.encode(audio(1))[0].tolist() == [1, 1]
    assert tokenizer.num_heard == REMEMBERED + 2
