"""The thinker's audio encoder, whose output is as wide as the backbone."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from stretto.families.log_mel_encoder import audio_tower, embed_audio

__all__ = ["audio_adaptor", "audio_tower", "embed_audio"]


def audio_adaptor(config: Mapping[str, Any], hidden_size: int) -> nn.Identity:
    """Return an identity, because the encoder's output already has the backbone's width."""
    return nn.Identity()
