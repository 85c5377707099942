"""Log-mel input of an audio encoder: its format, and the features of a recording."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from stretto.errors import InvalidRequest
from stretto.family.audio_format import AudioFormat
from stretto.records.prompt import InputAudio

SAMPLE_RATE = 16_000
HOP = 160
WINDOW = 400
SHORTEST = WINDOW // 2 + 1  # samples; the waveform is reflected by half a window at both ends


@dataclass(frozen=True, slots=True)
class MelFormat(AudioFormat):
    """Input format of the encoder in `log_mel_encoder.py`: 100 log-mel frames/s in chunks of 2 * n_window frames.

    Attributes:
        n_window: Half the chunk length, in frames.
        do_normalize: True if the waveform is first normalised to zero mean and unit variance.
    """

    n_window: int = 50
    do_normalize: bool = True

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "MelFormat":
        """Read the format from the encoder's `audio_config`."""
        return cls(record["num_mel_bins"], record["n_window"], record.get("do_normalize", True))

    def num_rows(self, num_frames: int) -> int:
        """Return the number of rows after three convolutions of stride 2 over each chunk.

        A shorter last chunk is convolved separately. The number is computed from the convolutions, because the helper
        in transformers is correct only for an n_window of 50.
        """
        chunks, remainder = divmod(num_frames, 2 * self.n_window)
        return chunks * _after_convolutions(2 * self.n_window) + (_after_convolutions(remainder) if remainder else 0)


def _after_convolutions(num_frames: int) -> int:
    for _ in range(3):
        num_frames = (num_frames - 1) // 2 + 1
    return num_frames


@cache
def _extractor(num_mel_bins: int) -> Any:
    from transformers import WhisperFeatureExtractor  # slow to import for processes that only read the format

    return WhisperFeatureExtractor(feature_size=num_mel_bins, sampling_rate=SAMPLE_RATE, hop_length=HOP, n_fft=WINDOW)


def log_mel(pcm: np.ndarray, audio_format: MelFormat) -> np.ndarray:
    """Return the log-mel frames, float32 [n // 160, M], of mono samples, float32 [n >= SHORTEST] at 16 kHz.

    The waveform is not padded with silence; it is reflected at its end for the last frames, as in training.
    """
    extracted = _extractor(audio_format.feature_size)(
        pcm,
        sampling_rate=SAMPLE_RATE,
        do_normalize=audio_format.do_normalize,
        max_length=len(pcm),
        truncation=False,
        return_tensors="np",
    )
    return np.ascontiguousarray(extracted["input_features"][0, :, : len(pcm) // HOP].T, np.float32)


def input_audio(pcm: np.ndarray, path: str, first_row: int, audio_format: MelFormat | None) -> InputAudio:
    """Return the audio input for a mono recording, float32 at 16 kHz, of at least SHORTEST samples.

    If it is shorter, or the model has no audio encoder (`audio_format` is None), raise InvalidRequest.
    """
    if audio_format is None:
        raise InvalidRequest(path, "no audio (this checkpoint has no audio encoder)", f"{len(pcm)} samples")
    if len(pcm) < SHORTEST:
        expected = f"audio of at least {SHORTEST} samples ({SHORTEST / SAMPLE_RATE:.4f} s)"
        raise InvalidRequest(path, expected, f"{len(pcm)} samples")
    features = log_mel(pcm, audio_format)
    return InputAudio(first_row, audio_format.num_rows(len(features)), features)
