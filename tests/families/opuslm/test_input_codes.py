"""Audio that was encoded before is not encoded again."""

import numpy as np

from stretto.families.opuslm.prompt import InputCodes
from stretto.family.encoded_voices import ENTRY_BYTES, CachedEncoder
from tests.fakes import FrameCounter


class Loudness:
    """Fake tokenizer that encodes the first sample, returns one frame more than the codec, and counts its calls."""

    def __init__(self) -> None:
        self.num_audible = 0

    def encode(self, pcm: np.ndarray) -> np.ndarray:
        self.num_audible += 1
        return np.full(len(pcm) // 320 + 1, int(pcm[0]), np.int64)


def audio(value: int, num_frames: int = 2) -> np.ndarray:
    return np.full(320 * num_frames, value, np.float32)


def test_input_codes_are_cut_to_the_shorter_tokenizer() -> None:
    codes = InputCodes(FrameCounter(320, 8, 12), Loudness()).encode(audio(7))
    assert codes.tolist() == [[7, 7], *[[0, 1]] * 8]


def test_equal_audio_is_encoded_only_once() -> None:
    tokenizer = Loudness()
    heard = InputCodes(FrameCounter(320, 8, 12), tokenizer)
    for value, length in ((1, 2), (2, 2), (1, 2), (1, 3), (2, 2)):
        assert heard.encode(audio(value, length))[0].tolist() == [value] * length
    assert tokenizer.num_audible == 3


def test_least_recently_used_audio_is_evicted_first() -> None:
    tokenizer, num_entries = Loudness(), 5
    heard = CachedEncoder(tokenizer.encode, num_entries * (3 * 8 + ENTRY_BYTES))
    for value in range(num_entries):
        heard.encode(audio(value))
    heard.encode(audio(0))
    heard.encode(audio(num_entries))
    assert tokenizer.num_audible == num_entries + 1
    heard.encode(audio(0))
    assert tokenizer.num_audible == num_entries + 1
    assert heard.encode(audio(1)).tolist() == [1, 1, 1]
    assert tokenizer.num_audible == num_entries + 2


def test_encoder_cache_is_bounded_in_bytes() -> None:
    tokenizer, room = Loudness(), 100 * 8 + ENTRY_BYTES
    heard = CachedEncoder(tokenizer.encode, room)
    heard.encode(audio(1, 40))
    heard.encode(audio(2, 99))  # takes all of it
    assert heard.encode(audio(2, 99)).tolist() == [2] * 100
    assert tokenizer.num_audible == 2
    for _ in range(2):  # and this more than all: it is not kept, and nothing that was before it
        assert heard.encode(audio(3, 100)).tolist() == [3] * 101
    assert tokenizer.num_audible == 4
    heard.encode(audio(1, 40))
    assert tokenizer.num_audible == 5
