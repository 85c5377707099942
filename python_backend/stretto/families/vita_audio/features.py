"""Features of SenseVoice's encoder: Kaldi's log-mel frames, seven stacked per frame, normalised; 60 ms each.

`WavFrontend` of https://github.com/modelscope/FunASR (funasr/frontends/wav_frontend.py) with its options for
SenseVoiceSmall, over Kaldi's filter bank as computed by torchaudio (torchaudio/compliance/kaldi.py).
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from transformers.audio_utils import mel_filter_bank

SAMPLE_RATE = 16_000
HOP, WINDOW, SPECTRUM = 160, 400, 512  # samples
NUM_BINS, LOWEST_HZ = 80, 20.0
STACKED, STEP = 7, 6  # mel frames per frame, and between the starts of frames
PREEMPHASIS = 0.97
LEAST = np.finfo(np.float32).eps
FULL_SCALE = 1 << 15
DITHER = 1.0  # the frontend's default, so that digital silence has the noise of the training data


def stacked_log_mel(pcm: np.ndarray, audio: Mapping[str, Any], dither: float = DITHER) -> np.ndarray:
    """Return features [F, 560] float32; F is T / 6, rounded up, for T mel frames.

    Args:
        pcm: Mono samples [n >= WINDOW] at 16 kHz.
        audio: `audio_config` of config.json, with the `shift` and `scale` of each of the 560 numbers.
        dither: Standard deviation of the added noise in 16-bit steps. The noise is the same each time, so that the same
            audio has the same features.
    """
    mel = _log_mel(pcm, dither)
    around = STEP * np.arange(-(-len(mel) // STEP))[:, None] + np.arange(STACKED) - STACKED // 2
    stacked = mel[np.clip(around, 0, len(mel) - 1)].reshape(len(around), STACKED * NUM_BINS)
    shift, scale = (np.array(audio[name], np.float32) for name in ("shift", "scale"))
    return np.ascontiguousarray((stacked + shift) * scale, np.float32)


def _log_mel(pcm: np.ndarray, dither: float) -> np.ndarray:
    """Return log-mel frames [T, 80] float32; no frame extends beyond the waveform."""
    frames = sliding_window_view(pcm.astype(np.float32) * FULL_SCALE, WINDOW)[::HOP]
    if dither:
        frames = frames + dither * np.random.default_rng(0).standard_normal(frames.shape, np.float32)
    frames = frames - frames.mean(1, keepdims=True)
    before = np.concatenate([frames[:, :1], frames[:, :-1]], 1)
    spectrum = np.fft.rfft((frames - PREEMPHASIS * before) * np.hamming(WINDOW), SPECTRUM)
    return np.log(np.maximum(np.abs(spectrum) ** 2 @ _bank(), LEAST)).astype(np.float32)


@cache
def _bank() -> np.ndarray:
    """Return Kaldi's triangular filters [257, 80], evenly spaced in mel from LOWEST_HZ to half the sample rate."""
    top = SAMPLE_RATE / 2
    return mel_filter_bank(
        SPECTRUM // 2 + 1,
        NUM_BINS,
        LOWEST_HZ,
        top,
        SAMPLE_RATE,
        norm=None,
        mel_scale="kaldi",
        triangularize_in_mel_space=True,
    )
