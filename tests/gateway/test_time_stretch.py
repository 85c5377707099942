"""Time stretching: exact lengths, unchanged pitch, and equal samples for any chunks."""

import numpy as np
import pytest

from stretto_gateway.encoding import GREATEST_SPEED, LEAST_SPEED, TimeStretch

RATE, HZ = 24_000, 440.0
SPEEDS = [LEAST_SPEED, 0.5, 0.8, 1.25, 2.0, 3.1, GREATEST_SPEED]
SINE = np.round(10_000 * np.sin(2 * np.pi * HZ * np.arange(2 * RATE) / RATE)).astype(np.int16)


def stretched(speed: float, pcm: np.ndarray, size: int, rate: int = RATE) -> list[np.ndarray]:
    """Stretch `pcm` in parts of `size` samples; the last part is the remainder."""
    stretch = TimeStretch(speed, rate)
    parts = [stretch.stretch(pcm[begin : begin + size]) for begin in range(0, len(pcm), size)]
    return [*parts, stretch.close()]


def pitch(pcm: np.ndarray) -> float:
    """Return the strongest frequency in Hz."""
    middle = pcm[len(pcm) // 10 : -len(pcm) // 10]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle)), 1 << 18))
    return float(np.argmax(spectrum)) * RATE / (1 << 18)


@pytest.mark.parametrize("speed", SPEEDS)
def test_time_stretch_changes_duration_but_not_pitch(speed: float) -> None:
    made = np.concatenate(stretched(speed, SINE, len(SINE)))
    assert (made.dtype, len(made)) == (np.int16, round(len(SINE) / speed))
    assert pitch(made) == pytest.approx(HZ, rel=0.01)
    level = np.sqrt(np.mean(made[RATE // 10 : -RATE // 10].astype(float) ** 2))
    assert level == pytest.approx(10_000 / np.sqrt(2), rel=0.1)


@pytest.mark.parametrize("speed", SPEEDS)
@pytest.mark.parametrize("size", [77, 960, 5000])
def test_streamed_time_stretch_equals_whole_and_starts_early(speed: float, size: int) -> None:
    parts = stretched(speed, SINE, size)
    assert np.array_equal(np.concatenate(parts), np.concatenate(stretched(speed, SINE, len(SINE))))
    assert sum(map(len, parts[: len(parts) // 4])) > 0


@pytest.mark.parametrize("speed", SPEEDS)
@pytest.mark.parametrize(
    ("num_samples", "rate"), [(0, RATE), (1, RATE), (100, RATE), (2000, RATE), (900, 4000), (9000, 192_000)]
)
def test_time_stretched_short_utterances_have_the_right_length(speed: float, num_samples: int, rate: int) -> None:
    made = np.concatenate(stretched(speed, np.full(num_samples, 5000, np.int16), 480, rate))
    assert len(made) == max(round(num_samples / speed), min(num_samples, 1))
