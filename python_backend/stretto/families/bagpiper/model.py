"""Bagpiper's audio encoder, which comes from Qwen3-Omni, and the adaptor from its width to the backbone's width."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from stretto.family.log_mel_encoder import audio_tower, embed_audio

__all__ = ["audio_adaptor", "audio_tower", "embed_audio"]


def audio_adaptor(config: Mapping[str, Any], hidden_size: int) -> nn.Linear:
    """Create the projection of the encoder's output to the backbone's width; its weights are loaded later."""
    return nn.Linear(config["output_dim"], hidden_size)
