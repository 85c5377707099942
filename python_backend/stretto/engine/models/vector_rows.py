"""Audio encoder of models whose preprocessor computes the rows of a recorded voice."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


def audio_tower(config: Mapping[str, Any]) -> nn.Identity:
    """Return an identity, because the networks that encode recordings run in the preprocessor."""
    return nn.Identity()


def audio_adaptor(config: Mapping[str, Any], hidden_size: int) -> nn.Identity:
    """Return an identity, because the features are embedding rows."""
    return nn.Identity()


def embed_audio(tower: nn.Identity, adaptor: nn.Identity, features: torch.Tensor) -> torch.Tensor:
    """Return `features`, which already are the rows [N, H]."""
    return adaptor(tower(features))
