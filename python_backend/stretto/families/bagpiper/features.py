"""Log-mel features for a family's audio encoder, as Whisper computes them."""

from functools import cache

import numpy as np
from transformers import WhisperFeatureExtractor

from stretto.families.audio_format import AudioFormat

SAMPLE_RATE = 16_000
HOP = 160


@cache
def _extractor(num_mel_bins: int) -> WhisperFeatureExtractor:
    return WhisperFeatureExtractor(feature_size=num_mel_bins, sampling_rate=SAMPLE_RATE, hop_length=HOP, n_fft=400)


def log_mel(pcm: np.ndarray, audio_format: AudioFormat) -> np.ndarray:
    """Features [F, M] float32 of mono `pcm` [n] at 16 kHz, at most 30 s; F is n / 160, rounded up.

    The waveform is padded to 30 s before, and the features of the padding cut away, as the encoder was trained: the
    loudest bin, from which the features are measured, is that of the audio either way.
    """
    made = _extractor(audio_format.num_mel_bins)(
        pcm,
        sampling_rate=SAMPLE_RATE,
        do_normalize=audio_format.do_normalize,
        return_attention_mask=True,
        return_tensors="np",
    )
    num_frames = int(made["attention_mask"][0].sum())
    return np.ascontiguousarray(made["input_features"][0, :, :num_frames].T, np.float32)
