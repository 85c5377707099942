"""How a family hears audio through an encoder of its own: what it is fed, and how many rows come of it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from stretto.errors import InvalidRequest
from stretto.records.prompt import Prompt

KEY = "audio_config"  # of a checkpoint's config.json: the encoder's configuration
SENSE_VOICE = "sense_voice_small"  # its `model_type`, where it is not Qwen3-Omni's
X_VECTOR = "x_vector"  # its `model_type`, where there is none: a speaker encoder outside the model has heard a voice
THINKER_STATES = "thinker_states"  # its `model_type`, where a thinker has heard it, of which the model is given states
NUM_QUERIES = 4  # rows of its own that SenseVoice puts before those it hears


@dataclass(frozen=True, slots=True)
class AudioFormat(ABC):
    """What an encoder reads: frames of `feature_size` numbers."""

    feature_size: int

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> "AudioFormat | None":
        """From config.json; None for a checkpoint without an encoder."""
        record = config.get(KEY)
        if record is None:
            return None
        if record.get("model_type") == SENSE_VOICE:
            return StackedFormat(record["num_mel_bins"])
        if record.get("model_type") == X_VECTOR:
            return VectorFormat(record["hidden_size"])
        if record.get("model_type") == THINKER_STATES:
            return StatesFormat(record["hidden_size"])
        return MelFormat.from_config(config)

    @abstractmethod
    def num_rows(self, num_frames: int) -> int:
        """Rows of the model that F frames make."""


@dataclass(frozen=True, slots=True)
class MelFormat(AudioFormat):
    """What Qwen3-Omni's encoder reads: log-mel frames, 100 a second, in chunks of 2 * n_window.

    do_normalize: whether the waveform is brought to zero mean and unit variance before.
    """

    n_window: int = 50
    do_normalize: bool = True

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> "MelFormat | None":
        """From config.json of a checkpoint that hears so; None without an encoder."""
        record = config.get(KEY)
        if record is None:
            return None
        return MelFormat(record["num_mel_bins"], record["n_window"], record.get("do_normalize", True))

    def num_rows(self, num_frames: int) -> int:
        """Three convolutions of stride 2 over each chunk, each its own remainder.

        Counted from the convolutions themselves, as transformers' own helper is right for n_window 50 only.
        """
        chunks, rest = divmod(num_frames, 2 * self.n_window)
        return chunks * _after_convolutions(2 * self.n_window) + (_after_convolutions(rest) if rest else 0)


@dataclass(frozen=True, slots=True)
class StackedFormat(AudioFormat):
    """What SenseVoice's encoder reads: several log-mel frames as one; windowless."""

    def num_rows(self, num_frames: int) -> int:
        """A row for each of F frames, behind the encoder's own."""
        return NUM_QUERIES + num_frames


@dataclass(frozen=True, slots=True)
class VectorFormat(AudioFormat):
    """Vectors as wide as the model's rows, each in the place of a part of one."""

    def num_rows(self, num_frames: int) -> int:
        """A row for each."""
        return num_frames


@dataclass(frozen=True, slots=True)
class StatesFormat(VectorFormat):
    """Hidden states, as wide as the model that has heard something: a row of each."""


def _after_convolutions(num_frames: int) -> int:
    for _ in range(3):
        num_frames = (num_frames - 1) // 2 + 1
    return num_frames


def check_audios(prompt: Prompt, audio_format: AudioFormat | None) -> None:
    """Raise InvalidRequest unless the audios of `prompt` fit its rows and the encoder."""
    end = 0
    for index, audio in enumerate(prompt.audios):
        field = f"audios[{index}]"
        if audio_format is None:
            raise InvalidRequest(field, "no audio: this model hears through no encoder", f"{audio.num_rows} rows")
        if audio.features.ndim != 2 or audio.features.shape[1] != audio_format.feature_size or not len(audio.features):
            expected = f"features [F >= 1, {audio_format.feature_size}]"
            raise InvalidRequest(field, expected, list(audio.features.shape))
        if not np.isfinite(audio.features).all():
            raise InvalidRequest(field, "features that are finite numbers", "NaN or infinity")
        expected_rows = audio_format.num_rows(len(audio.features))
        if audio.num_rows != expected_rows:
            raise InvalidRequest(field, f"{expected_rows} rows for {len(audio.features)} frames", audio.num_rows)
        if not end <= audio.first_row <= len(prompt.rows) - audio.num_rows:
            raise InvalidRequest(field, f"rows in [{end}, {len(prompt.rows)})", audio.first_row)
        end = audio.first_row + audio.num_rows
