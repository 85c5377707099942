"""Rows of a recording: the sum of projected acoustic latents and projected semantic features."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from stretto_vibevoice.vibevoice.model import Connector


class Projectors(nn.Module):
    """Projections of both kinds of features to the backbone's width."""

    def __init__(self, acoustic_size: int, semantic_size: int, width: int):
        super().__init__()
        self.sizes = acoustic_size, semantic_size
        self.acoustic = Connector(acoustic_size, width)
        self.semantic = Connector(semantic_size, width)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        latents, meanings = features.split(self.sizes, 1)
        embeddings: torch.Tensor = self.acoustic(latents) + self.semantic(meanings)
        return embeddings


def audio_tower(config: Mapping[str, Any]) -> nn.Identity:
    """Return an identity, because the encoders run in the preprocessor."""
    return nn.Identity()


def audio_adaptor(config: Mapping[str, Any], hidden_size: int) -> Projectors:
    """Create the projections for an `audio_config`."""
    return Projectors(config["acoustic_size"], config["semantic_size"], hidden_size)


def embed_audio(tower: nn.Identity, adaptor: Projectors, features: torch.Tensor) -> torch.Tensor:
    """Return the rows [N, H] of features [N, A + E]."""
    return adaptor(tower(features).to(adaptor.acoustic.act.weight.dtype))
