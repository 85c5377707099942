"""Input formats of audio encoders, and a cache of their results."""

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np

from stretto.errors import CheckpointError, InvalidRequest, shown
from stretto.families.encoded_files import files_of_encoder
from stretto.families.plugin import UNNAMED, AudioEncoder
from stretto.families.registry import plugins
from stretto.records.prompt import Prompt

MAX_BYTES = 32 << 20  # 30 s of codes take at most 108 kB, in the family with the most codes
ENTRY_BYTES = 512  # overhead per entry


class CachedEncoder:
    """Audio encoder (to codes or a vector) with an LRU cache of its results, bounded in bytes.

    The cache key is a hash of the samples, so results are shared by all clients. A result that is used again, such as
    that of a stored voice, is also written to the files of the template (`encoded_files`).
    """

    def __init__(self, encode: Callable[[np.ndarray], np.ndarray], max_bytes: int = MAX_BYTES):
        self._encode, self._max_bytes = encode, max_bytes
        self._latest: OrderedDict[bytes, np.ndarray] = OrderedDict()
        self._num_bytes = 0
        self._files = files_of_encoder()
        self._unwritten: set[bytes] = set()  # used once

    def encode(self, pcm: np.ndarray) -> np.ndarray:
        """Return the encoder's result for mono `pcm`, float32 [n]."""
        key = blake2b(pcm.tobytes()).digest()
        if key in self._latest:
            self._latest.move_to_end(key)
            if self._files is not None and key in self._unwritten:
                self._unwritten.discard(key)
                self._files.write(key, self._latest[key])
            return self._latest[key]
        encoded = None if self._files is None else self._files.read(key)
        if encoded is None:
            encoded = self._encode(pcm)
            self._unwritten.add(key)
        self._latest[key] = encoded
        self._num_bytes += encoded.nbytes + ENTRY_BYTES
        while self._num_bytes > self._max_bytes:
            dropped, latest = self._latest.popitem(last=False)
            self._num_bytes -= latest.nbytes + ENTRY_BYTES
            self._unwritten.discard(dropped)
        return encoded


KEY = "audio_config"  # key of the encoder's configuration in a checkpoint's config.json


@dataclass(frozen=True, slots=True)
class AudioFormat(ABC):
    """Input format of an audio encoder: frames of `feature_size` numbers."""

    feature_size: int

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> "AudioFormat | None":
        """Return the format of the audio encoder in a checkpoint's config.json; None if the model has no encoder."""
        encoder = encoder_of(config)
        return None if encoder is None else encoder.read_format(config[KEY])

    @abstractmethod
    def num_rows(self, num_frames: int) -> int:
        """Return the number of rows that the encoder outputs for `num_frames` frames."""


@dataclass(frozen=True, slots=True)
class VectorFormat(AudioFormat):
    """Vectors as wide as the model's rows; each replaces part of the embedding of one row."""

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "VectorFormat":
        """Return the format in an `audio_config` that contains the width of the vectors."""
        return cls(record["hidden_size"])

    def num_rows(self, num_frames: int) -> int:
        """Return the number of vectors, because each one is a row."""
        return num_frames


def encoder_of(config: Mapping[str, Any]) -> AudioEncoder | None:
    """Return the audio encoder named by `model_type` of `audio_config` in a checkpoint's config.json, or None.

    Raises:
        CheckpointError: If no installed family has such an encoder.
    """
    record = config.get(KEY)
    if record is None:
        return None
    kind = record.get("model_type", UNNAMED) if isinstance(record, Mapping) else record
    known = {name: encoder for plugin in plugins() for name, encoder in plugin.audio_encoders.items()}
    if not isinstance(kind, str) or kind not in known:
        expected = f"model_type {', '.join(sorted(filter(None, known)))}"
        raise CheckpointError(f"config.json: {KEY}: expected {expected}, got {shown(kind)}")
    return known[kind]


def check_audios(prompt: Prompt, audio_format: AudioFormat | None) -> None:
    """Check the audio inputs of a prompt.

    Args:
        prompt: The prompt.
        audio_format: Input format of the model's audio encoder; None if the model has none.

    Raises:
        InvalidRequest: Audio inputs do not match the prompt's rows or the encoder.
    """
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
