"""How Qwen3-TTS reads a voice that it clones: as an x-vector, which stands in the place of a code's embedding."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


class BesideText(nn.Module):
    """Adds what stands on the stream of the text in that row: the embedding of its pad, behind the projection."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.pad = nn.Parameter(torch.empty(hidden_size), requires_grad=False)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """[N, H] as [N, H] of the model's type."""
        return codes.to(self.pad.dtype) + self.pad


def audio_tower(config: Mapping[str, Any]) -> nn.Identity:
    """Nothing: the speaker encoder belongs to the preprocessor."""
    return nn.Identity()


def audio_adaptor(config: Mapping[str, Any], hidden_size: int) -> BesideText:
    """What makes a row of an x-vector."""
    return BesideText(hidden_size)


def embed_audio(tower: nn.Identity, adaptor: BesideText, features: torch.Tensor) -> torch.Tensor:
    """Rows [N, H] for x-vectors [N, H]."""
    return adaptor(tower(features))
