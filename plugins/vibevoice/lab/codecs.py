"""The acoustic codec of VibeVoice with random weights, for the tests and measurements of all codecs."""

from pathlib import Path
from typing import Any

from lab.releases.codec_cases import CodecCase, converted
from plugins.vibevoice.lab.random_vibevoice_realtime import write_release
from stretto_vibevoice.codec import LatentScale, TokenizerConfig, VibeVoiceCodec

NARROW: dict[str, Any] = {"hidden_size": 8, "num_filters": 2, "depths": [1] * 7}


def vibevoice(is_narrow: bool) -> VibeVoiceCodec:
    """Return the codec."""
    return VibeVoiceCodec(TokenizerConfig.from_record(NARROW if is_narrow else {}), LatentScale(1.0, 0.0))


def write(folder: Path) -> Path:
    """Write a checkpoint of the family, which contains the codec, and return its folder."""
    return converted("vibevoice-realtime", write_release(folder / "release"))


CASES = {"vibevoice": CodecCase(vibevoice, write, (1, 8))}
