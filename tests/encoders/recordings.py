"""Audio for the authors' tokenizer and for ours."""

from pathlib import Path

import numpy as np

HEARD = Path(__file__).with_name("tokens.json")
SECONDS = (0.05, 1.0, 2.56, 4.321, 31.7)
# around a token (1280 samples), of no round number, and with a remainder of one sample or one token after 30 s
NUM_SAMPLES = (1, 1279, 1280, 1281, 7919, 480_001, 481_280, 483_820)
LENGTHS = (*SECONDS, *(num_samples / 16_000 for num_samples in NUM_SAMPLES))  # seconds


def speech(seconds: float) -> np.ndarray:
    """Return samples, float32 [n] at 16 kHz, whose loudness and pitch change."""
    time, draw = np.arange(round(16_000 * seconds)) / 16_000, np.random.default_rng(3)
    pitch = 2 * np.pi * np.cumsum(140 + 90 * np.sin(5 * time) + 30 * np.sin(23 * time)) / 16_000
    tones = sum(np.sin(harmonic * pitch + harmonic) * (1 + np.sin((3 + harmonic) * time)) for harmonic in (1, 3, 7, 12))
    noise = draw.standard_normal(len(time)) * np.maximum(0, np.sin(7 * time))
    return (0.05 * tones * np.sin(2 * time) ** 2 + 0.05 * noise + 0.001 * draw.standard_normal(len(time))).astype(
        np.float32
    )


def loud_end() -> np.ndarray:
    """Return 30 s of speech, then two tokens of faint noise that end with a loud click, as float32 samples."""
    draw = np.random.default_rng(2)
    rest = 1e-4 * draw.standard_normal(2560)
    rest[-18:] += 0.3 * draw.standard_normal(18)
    return np.concatenate([speech(30.0), rest]).astype(np.float32)


def recordings() -> dict[str, np.ndarray]:
    """Return all recordings by their names in HEARD."""
    return {str(seconds): speech(seconds) for seconds in LENGTHS} | {"loud end": loud_end()}
