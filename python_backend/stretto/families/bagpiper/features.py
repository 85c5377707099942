"""Log-mel features of Bagpiper's audio encoder, computed by Whisper's extractor with ESPnet's options."""

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
    """Return features [F, M] float32 of mono `pcm` [n >= SHORTEST] at 16 kHz, at most 30 s; F = n // 160.

    Nothing is padded. The last frames see the end of the waveform mirrored, as in training, and no silence after it.
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
