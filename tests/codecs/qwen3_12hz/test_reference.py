"""The codec and the speaker encoder against the authors' code with the same random weights
(`authors.py`)."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lab.releases.random_qwen3_codec import write_qwen3_codec, write_speaker_encoder
from stretto.codecs.base import load_codec
from stretto.encoders.x_vector import read_speaker_encoder
from stretto.preprocessing.audio import resample
from stretto.testing.codec_streams import chunks_of, stream
from tests.codecs.qwen3_12hz.reference import EVERY, FRAMES, HEARD_S, REFERENCE, SPEAKER, codes, speech
from tests.tiers import by_night

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
MADE = np.load(REFERENCE)
HOP = 1920
RAMP = [1, 2, 4, 8, 16, *[25] * FRAMES]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_qwen3_codec(tmp_path_factory.mktemp("qwen3_12hz"))


EXACT, ROUNDED = (torch.float64, 1e-12), (torch.float32, 1e-5)
FIVE, MANY, FRAME_BY_FRAME = chunks_of(5, FRAMES), chunks_of(25, FRAMES), [1] * FRAMES
BY_NIGHT = [
    (FIVE, *EXACT),
    (FIVE, *ROUNDED),
    (MANY, *EXACT),
    (RAMP, *ROUNDED),
    (FRAME_BY_FRAME, *EXACT),
    (FRAME_BY_FRAME, *ROUNDED),
]


@pytest.mark.parametrize(
    ("sizes", "dtype", "tolerance"),
    [(MANY, *ROUNDED), (RAMP, *EXACT), *by_night(*BY_NIGHT)],
    ids=lambda value: str(len(value) if isinstance(value, list) else value),
)
def test_qwen3_12hz_chunked_decode_matches_the_published_decode(
    checkpoint: Path, sizes: list[int], dtype: torch.dtype, tolerance: float
) -> None:
    codec = load_codec("qwen3_12hz", checkpoint).to(dtype)
    pcm = stream(codec, codes(), sizes)
    assert pcm.shape == (1, FRAMES * HOP)
    assert MADE["level"] > 0.05
    assert np.abs(pcm[0, ::EVERY].numpy() - MADE["whole"]).max() <= tolerance


def test_authors_chunked_decode_differs_from_the_second_chunk_on() -> None:
    differs = np.abs(MADE["chunked"] - MADE["whole"]) > 1e-4 * MADE["level"]
    assert differs.any()
    assert differs.argmax() * EVERY >= 300 * HOP


def test_voice_codes_match_the_published_wrapper(checkpoint: Path) -> None:
    codec = load_codec("qwen3_12hz", checkpoint)
    for seconds in HEARD_S:
        assert np.array_equal(codec.encode(speech(seconds)), MADE[f"heard_{seconds}"])
    pcm = resample(speech(HEARD_S[-1], 16_000), 16_000, codec.spec.sample_rate)
    assert np.array_equal(codec.encode(pcm), MADE["heard_16khz"])


def test_speaker_encoder_matches_the_published_x_vector(tmp_path: Path) -> None:
    encoder = read_speaker_encoder(write_speaker_encoder(tmp_path, SPEAKER))
    for seconds in HEARD_S[1:]:
        theirs = MADE[f"speaker_{seconds}"]
        assert np.abs(theirs).max() > 0.1
        assert np.abs(encoder.encode(speech(seconds)) - theirs).max() < 1e-5
