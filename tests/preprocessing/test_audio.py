"""Audio files and samples to mono samples, and everything that is refused."""

from io import BytesIO

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from stretto.errors import InvalidRequest
from stretto.preprocessing.audio import MAX_FILE_BYTES, check_pcm, read_file, resample

MAX_S = 9.6


def tone(rate: int, seconds: float = 0.5, hertz: float = 200.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def encoded(samples: np.ndarray, rate: int, container: str, **options: str) -> bytes:
    buffer = BytesIO()
    soundfile.write(buffer, samples, rate, format=container, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("container", ["WAV", "FLAC", "OGG", "MP3"])
@pytest.mark.parametrize(("rate", "channels"), [(8_000, 1), (16_000, 2), (44_100, 1), (48_000, 2)])
def test_any_container_rate_and_channels_read_as_the_same_tone(container: str, rate: int, channels: int) -> None:
    data = encoded(np.repeat(tone(rate)[:, None], channels, 1), rate, container)
    pcm, got_rate = read_file(data, MAX_S)
    assert (pcm.ndim, pcm.dtype, got_rate) == (1, np.float32, rate)
    at_16k = resample(pcm, rate, 16_000)
    expected = tone(16_000)
    middle = slice(2_000, 6_000)  # away from edges and codec delay
    spectrum = np.abs(np.fft.rfft(at_16k[middle] * np.hanning(4_000)))
    assert spectrum.argmax() == 50  # 200 Hz in bins of 4 Hz
    assert np.std(at_16k[middle]) == pytest.approx(np.std(expected[middle]), rel=0.05)
    assert abs(len(at_16k) - len(expected)) <= 0.1 * len(expected)


def test_channels_are_mixed_by_their_mean() -> None:
    stereo = np.stack([tone(16_000), -tone(16_000)], 1)
    pcm, _ = read_file(encoded(stereo, 16_000, "WAV", subtype="FLOAT"), MAX_S)
    assert np.abs(pcm).max() < 1e-6


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000, 96_000])
def test_a_tone_survives_resampling(rate: int) -> None:
    assert np.allclose(resample(tone(rate), rate, 16_000)[500:7_000], tone(16_000)[500:7_000], atol=2e-3)


def refusal(data: bytes) -> str:
    with pytest.raises(InvalidRequest) as caught:
        read_file(data, MAX_S)
    return str(caught.value)


def test_a_file_beyond_the_limit_of_bytes_is_refused_before_it_is_decoded() -> None:
    assert refusal(bytes(100_000_000)) == f"audio: expected at most {MAX_FILE_BYTES} bytes, got 100000000 bytes"


@pytest.mark.parametrize("data", [b"RIFF", b"not audio at all" * 10, bytes(1000), b"fLaC" + bytes(100), b"OggS" * 50])
def test_bytes_that_are_no_audio_are_refused(data: bytes) -> None:
    assert refusal(data).startswith("audio: expected a readable wav, flac, ogg or mp3 file, got an error")


def test_no_bytes_are_refused() -> None:
    assert refusal(b"") == "audio: expected the bytes of a wav, flac, ogg or mp3 file, got 0 bytes"


def test_a_truncated_flac_is_refused() -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 16_000)
    assert refusal(encoded(noise, 16_000, "FLAC")[:9_000]).startswith("audio: expected a readable")


def test_audio_longer_than_the_limit_is_refused() -> None:
    assert refusal(encoded(tone(8_000, 9.7), 8_000, "WAV")) == "audio: expected at most 9.6 s, got more"
    read_file(encoded(tone(8_000, 9.6), 8_000, "WAV"), MAX_S)


def test_other_containers_rates_and_channel_counts_are_refused() -> None:
    assert refusal(encoded(tone(8_000), 8_000, "AIFF")) == "audio: expected a wav, flac, ogg or mp3 file, got AIFF"
    assert refusal(encoded(tone(8_000), 500, "WAV")) == "audio: expected a rate in [1000, 384000] Hz, got 500"
    assert refusal(encoded(np.zeros((9, 9)), 8_000, "WAV")) == "audio: expected at most 8 channels, got 9"
    assert refusal(encoded(np.zeros(0), 8_000, "WAV")) == "audio: expected at least one sample, got none"


def test_nan_in_a_file_is_refused() -> None:
    data = encoded(np.array([0.0, np.nan, 0.0]), 8_000, "WAV", subtype="FLOAT")
    assert refusal(data) == "audio: expected finite samples, got NaN or infinity"


GOOD = {container: encoded(tone(8_000, 0.1), 8_000, container) for container in ("WAV", "FLAC", "OGG", "MP3")}


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(GOOD)), st.lists(st.tuples(st.integers(0, 4_000), st.integers(0, 255)), max_size=8))
def test_damaged_bytes_are_read_or_refused_and_nothing_else(container: str, damage: list[tuple[int, int]]) -> None:
    data = bytearray(GOOD[container])
    for position, byte in damage:
        data[position % len(data)] = byte
    try:
        pcm, _ = read_file(bytes(data), MAX_S)
    except InvalidRequest:
        return
    assert np.isfinite(pcm).all()


@pytest.mark.parametrize(
    ("pcm", "rate", "message"),
    [
        (tone(8_000), None, "sample_rate: expected the rate of pcm_in in Hz, got none"),
        (tone(8_000), 0, "sample_rate: expected a rate in [1000, 384000] Hz, got 0"),
        (tone(8_000), -8_000, "sample_rate: expected a rate in [1000, 384000] Hz, got -8000"),
        (tone(8_000), 400_000, "sample_rate: expected a rate in [1000, 384000] Hz, got 400000"),
        (np.zeros(0, np.float32), 8_000, "pcm_in: expected at least one sample, got none"),
        (np.zeros((2, 9), np.float32), 8_000, "pcm_in: expected mono samples [n] float32, got [2, 9] float32"),
        (np.zeros(9, np.int16), 8_000, "pcm_in: expected mono samples [n] float32, got [9] int16"),
        (np.array([0, np.nan], np.float32), 8_000, "pcm_in: expected finite samples, got NaN or infinity"),
        (np.array([0, np.inf], np.float32), 8_000, "pcm_in: expected finite samples, got NaN or infinity"),
        (np.array([32_000], np.float32), 8_000, "pcm_in: expected samples in [-1, 1], got a peak of 32000"),
        (np.zeros(80_000, np.float32), 8_000, "pcm_in: expected at most 9.6 s, got 10.0 s"),
    ],
)
def test_bad_samples_are_refused_by_name(pcm: np.ndarray, rate: int | None, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_pcm(pcm, rate, MAX_S)
    assert str(caught.value) == message
