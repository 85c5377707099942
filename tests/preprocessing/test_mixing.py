"""Channels that cancel, or of which only one has sound, are mixed at the level of the recording."""

from io import BytesIO

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from stretto.errors import InvalidRequest
from stretto.preprocessing.audio import read_file
from stretto.preprocessing.decoders import BLOCK_SAMPLES
from stretto.preprocessing.mixing import Mixer
from tests.preprocessing.test_audio import written

RATE, MAX_S = 16_000, 30.0


def voice(seconds: float = 1.0, seed: int = 0) -> np.ndarray:
    """Return noise with the envelope of syllables, float32 [n], with a peak of 0.5."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * RATE)) / RATE
    pcm = rng.normal(size=len(time)) * np.abs(np.sin(2 * np.pi * 3 * time + seed))
    return (0.5 * pcm / np.abs(pcm).max()).astype(np.float32)


def hiss(level_db: float, size: int = RATE, seed: int = 9) -> np.ndarray:
    return (10 ** (level_db / 20) * np.random.default_rng(seed).normal(size=size)).astype(np.float32)


def read(channels: np.ndarray, container: str = "WAV") -> np.ndarray:
    """Return the mono samples of a file with channels [C, n]; lossless containers only."""
    buffer = BytesIO()
    subtype = "FLOAT" if container == "WAV" else "PCM_24"
    soundfile.write(buffer, channels.T, RATE, format=container, subtype=subtype)
    return read_file(buffer.getvalue(), MAX_S)[0]


def decibels(pcm: np.ndarray) -> float:
    return float(10 * np.log10(max(1e-12, np.square(pcm, dtype=np.float64).mean())))


VOICE, OTHER = voice(), voice(seed=1)
NOTHING = np.zeros_like(VOICE)
# Channels that cancel in their mean, and the gain of the voice in the result.
CANCELLING = {
    "inverted": [VOICE, -VOICE],
    "almost inverted": [VOICE, -0.95 * VOICE],
    "inverted at half the level": [0.5 * VOICE, -VOICE],
    "inverted with hiss": [VOICE + hiss(-50), -VOICE + hiss(-50, seed=8)],
    "inverted with offsets": [VOICE + 0.1, 0.1 - VOICE],
    "front of 5.1": [VOICE, -VOICE, NOTHING, NOTHING, NOTHING, NOTHING],
    "pairs of 5.1": [VOICE, -VOICE, NOTHING, NOTHING, 0.7 * VOICE, -0.7 * VOICE],
    "centre against both sides": [0.5 * VOICE, 0.5 * VOICE, -VOICE],
    "two of four microphones": [VOICE, -VOICE, VOICE, -VOICE],
}


@pytest.mark.parametrize("name", CANCELLING)
def test_channels_that_cancel_keep_the_recording_at_its_level(name: str) -> None:
    channels = np.stack(CANCELLING[name])
    pcm = read(channels)
    pcm = pcm - pcm.mean()
    assert abs(np.corrcoef(pcm, VOICE)[0, 1]) > 0.99
    assert decibels(pcm) > max(map(decibels, channels - channels.mean(1, keepdims=True))) - 5.3


def test_inverted_stereo_reads_exactly_as_mono() -> None:
    assert np.array_equal(read(np.stack([VOICE, -VOICE])), VOICE)


@pytest.mark.parametrize(("muxer", "codec"), [("webm", "libopus"), ("ipod", "aac"), ("ipod", "alac"), ("ogg", "flac")])
def test_inverted_stereo_is_also_read_by_ffmpeg(muxer: str, codec: str) -> None:
    rate = 48_000 if codec == "libopus" else RATE
    mono = np.interp(np.arange(rate) / rate, np.arange(RATE) / RATE, VOICE)
    pcm, _ = read_file(written(np.stack([mono, -mono], 1), rate, muxer, codec), MAX_S)
    assert decibels(pcm) > decibels(mono) - 3


@pytest.mark.parametrize("number", [2, 3, 6, 8])
@pytest.mark.parametrize("at", [0, -1])
def test_recording_in_one_channel_keeps_its_level(number: int, at: int) -> None:
    channels = np.zeros((number, RATE), np.float32)
    channels[at] = VOICE
    assert np.allclose(read(channels), VOICE, atol=1e-6)


def test_recording_in_one_channel_with_hiss_in_the_others_keeps_its_level() -> None:
    pcm = read(np.stack([hiss(-60), VOICE]))
    assert decibels(pcm) == pytest.approx(decibels(VOICE), abs=0.1)
    assert np.corrcoef(pcm, VOICE)[0, 1] > 0.999


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_infinite_samples_of_one_channel_are_refused(bad: float) -> None:
    channels = np.stack([VOICE, VOICE])
    channels[0, 99:101] = bad, 0
    with pytest.raises(InvalidRequest, match="audio: expected finite samples, got NaN or infinity"):
        read(channels)


def test_restored_level_does_not_clip() -> None:
    """A short passage in which all channels are loud does not exceed full scale."""
    left, right = 1.9 * VOICE, NOTHING.copy()
    left[:100] = right[:100] = 0.95
    assert read(np.stack([left, right])).max() <= 1.0


def test_both_parties_of_a_call_are_kept() -> None:
    """Each has a channel of its own; neither is dropped, whatever the other's level."""
    for level in (1.0, 0.3, 0.03):
        pcm = read(np.stack([VOICE, level * OTHER]))
        gains = np.linalg.lstsq(np.stack([VOICE, OTHER], 1), pcm, rcond=None)[0]
        assert gains[1] / gains[0] == pytest.approx(level, rel=0.02)
        assert 0.49 < gains[0] < 1.01


ORDINARY = {
    "equal": [VOICE, VOICE],
    "panned": [VOICE, 0.4 * VOICE],
    "wide": [VOICE + 0.3 * OTHER, VOICE - 0.3 * OTHER],
    "unrelated": [VOICE, OTHER],
    "two microphones": [VOICE, np.roll(VOICE, 9)],
    "silent": [NOTHING, NOTHING],
}


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_stereo_is_the_mean_bit_for_bit(name: str) -> None:
    channels = np.stack(ORDINARY[name]).astype(np.float32)
    assert np.array_equal(read(channels), channels.T.mean(axis=1))
    lossless = read(channels, "FLAC")
    assert np.allclose(lossless, channels.mean(0), atol=2e-7)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(sorted(CANCELLING | ORDINARY)), st.lists(st.integers(0, RATE), max_size=9))
def test_mix_does_not_depend_on_the_blocks(name: str, cuts: list[int]) -> None:
    channels = np.stack((CANCELLING | ORDINARY)[name]).astype(np.float32).T
    mixed = list[np.ndarray]()
    for blocks in ([channels], np.split(channels, sorted(cuts))):
        mixer = Mixer()
        for block in blocks:
            mixer.add(block)
        signs = mixer.better_signs()
        mixer = Mixer(signs)
        for block in blocks:
            mixer.add(block)
        mixed.append(mixer.pcm())
    assert np.array_equal(*mixed)


def test_later_inversion_is_found_in_a_long_file() -> None:
    """One channel is silent in the first block and inverted after it."""
    pcm = np.resize(VOICE, 3 * BLOCK_SAMPLES)
    late = np.where(np.arange(len(pcm)) < BLOCK_SAMPLES, 0, -pcm).astype(np.float32)
    assert np.array_equal(read(np.stack([pcm, late])), (pcm - late) / 2)
