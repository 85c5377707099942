"""Input formats of audio encoders."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from stretto.errors import CheckpointError, InvalidRequest, shown
from stretto.family.plugin import UNNAMED, AudioEncoder, plugins
from stretto.records.prompt import Prompt

KEY = "audio_config"  # key of the encoder's configuration in a checkpoint's config.json


@dataclass(frozen=True, slots=True)
class AudioFormat(ABC):
    """Input format of an audio encoder: frames of `feature_size` numbers."""

    feature_size: int

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> "AudioFormat | None":
        """Return the audio encoder's input format from a checkpoint's config.json, or None if there is no encoder."""
        encoder = encoder_of(config)
        return None if encoder is None else encoder.read_format(config[KEY])

    @abstractmethod
    def num_rows(self, num_frames: int) -> int:
        """Return the number of rows that the encoder outputs for `num_frames` frames."""


@dataclass(frozen=True, slots=True)
class VectorFormat(AudioFormat):
    """Input format of vectors as wide as the model's rows. Each one replaces part of a row's embedding."""

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "VectorFormat":
        """Read the format from an `audio_config`, which contains the width of the vectors."""
        return cls(record["hidden_size"])

    def num_rows(self, num_frames: int) -> int:
        """Return `num_frames`, because each vector is one row."""
        return num_frames


def encoder_of(config: Mapping[str, Any]) -> AudioEncoder | None:
    """Return the audio encoder that a config.json names, if any; raise CheckpointError if it is not installed."""
    record = config.get(KEY)
    if record is None:
        return None
    model_type = record.get("model_type", UNNAMED) if isinstance(record, Mapping) else record
    encoders = {name: encoder for plugin in plugins() for name, encoder in plugin.audio_encoders.items()}
    if not isinstance(model_type, str) or model_type not in encoders:
        expected = f"model_type {', '.join(sorted(filter(None, encoders)))}"
        raise CheckpointError(f"config.json: {KEY}: expected {expected}, got {shown(model_type)}")
    return encoders[model_type]


def check_audios(prompt: Prompt, audio_format: AudioFormat | None) -> None:
    """Raise InvalidRequest if an audio input does not fit the prompt's rows or the encoder's input format."""
    end = 0
    for index, audio in enumerate(prompt.audios):
        field = f"audios[{index}]"
        if audio_format is None:
            raise InvalidRequest(field, "no audio (this model has no audio encoder)", f"{audio.num_rows} rows")
        if audio.features.ndim != 2 or audio.features.shape[1] != audio_format.feature_size or not len(audio.features):
            expected = f"features [F >= 1, {audio_format.feature_size}]"
            raise InvalidRequest(field, expected, list(audio.features.shape))
        if not np.isfinite(audio.features).all():
            raise InvalidRequest(field, "finite features", "NaN or infinity")
        expected_rows = audio_format.num_rows(len(audio.features))
        if audio.num_rows != expected_rows:
            raise InvalidRequest(
                field, f"{expected_rows} rows for {len(audio.features)} frames", f"{audio.num_rows} rows"
            )
        if not end <= audio.first_row <= len(prompt.rows) - audio.num_rows:
            raise InvalidRequest(field, f"a first row in [{end}, {len(prompt.rows) - audio.num_rows}]", audio.first_row)
        end = audio.first_row + audio.num_rows
