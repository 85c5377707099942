"""Qwen3-TTS input for a cloned voice: an x-vector, which replaces the embedding of a code."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


class TextPadAdder(nn.Module):
    """Module that adds the projected text-pad embedding to the x-vector, because its row has a pad as text."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.pad = nn.Parameter(torch.empty(hidden_size), requires_grad=False)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """Return rows [N, H] in the model's dtype for x-vectors [N, H]."""
        return codes.to(self.pad.dtype) + self.pad


def audio_tower(config: Mapping[str, Any]) -> nn.Identity:
    """Return an identity, because the speaker encoder runs in the preprocessor."""
    return nn.Identity()


def audio_adaptor(config: Mapping[str, Any], hidden_size: int) -> TextPadAdder:
    """Create the module that converts an x-vector to a row."""
    return TextPadAdder(hidden_size)


def embed_audio(tower: nn.Identity, adaptor: TextPadAdder, features: torch.Tensor) -> torch.Tensor:
    """Return rows [N, H] for x-vectors [N, H]."""
    return adaptor(tower(features))
