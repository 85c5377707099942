"""Log-mel features for Bagpiper's audio encoder, as Whisper computes them and ESPnet asks for them."""

from functools import cache

import numpy as np
from transformers import WhisperFeatureExtractor

from stretto.families.audio_format import MelFormat

SAMPLE_RATE = 16_000
HOP, WINDOW = 160, 400
SHORTEST = WINDOW // 2 + 1  # samples: the waveform is mirrored at both ends by half a window


@cache
def _extractor(num_mel_bins: int) -> WhisperFeatureExtractor:
    return WhisperFeatureExtractor(feature_size=num_mel_bins, sampling_rate=SAMPLE_RATE, hop_length=HOP, n_fft=WINDOW)


def log_mel(pcm: np.ndarray, audio_format: MelFormat) -> np.ndarray:
    """Features [F, M] float32 of mono `pcm` [n >= SHORTEST] at 16 kHz, at most 30 s; F is n / 160, rounded down.

    Nothing is padded: the last frames see the waveform's end mirrored, as in training, not silence behind it.
    """
    made = _extractor(audio_format.feature_size)(
        pcm,
        sampling_rate=SAMPLE_RATE,
        do_normalize=audio_format.do_normalize,
        max_length=len(pcm),
        truncation=False,
        return_tensors="np",
    )
    return np.ascontiguousarray(made["input_features"][0, :, : len(pcm) // HOP].T, np.float32)
