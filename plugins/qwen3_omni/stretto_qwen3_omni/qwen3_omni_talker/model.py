"""Projection of the thinker's hidden states to rows of the Qwen3-Omni talker."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from stretto.family.image_encoder import ImageEncoder
from stretto.family.image_format import ImageFormat


class Projection(nn.Module):
    """Published `hidden_projection`: two linear layers with SiLU between them."""

    def __init__(self, width: int, inner: int, hidden_size: int):
        super().__init__()
        self.linear_fc1 = nn.Linear(width, inner)
        self.linear_fc2 = nn.Linear(inner, hidden_size)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.linear_fc2(F.silu(self.linear_fc1(states.to(self.linear_fc1.weight.dtype))))


def image_encoder(image_format: ImageFormat, backbone: Any, vllm_config: Any) -> ImageEncoder:
    """Return an encoder without a network, because the thinker has already encoded the images."""
    return ImageEncoder(nn.Identity(), embed_image, image_format, backbone, vllm_config)


def audio_tower(config: Mapping[str, Any]) -> nn.Identity:
    """Return an identity, because the thinker has already encoded the audio."""
    return nn.Identity()


def audio_adaptor(config: Mapping[str, Any], hidden_size: int) -> Projection:
    """Create the projection of the thinker's hidden states to rows."""
    return Projection(config["hidden_size"], config["intermediate_size"], hidden_size)


def embed_audio(tower: nn.Identity, adaptor: Projection, features: torch.Tensor) -> torch.Tensor:
    """Project the thinker's hidden states [N, W] to rows [N, H]."""
    return adaptor(tower(features))


def embed_image(
    tower: nn.Identity, adaptor: Projection, features: torch.Tensor, height: int, width: int
) -> torch.Tensor:
    """Project the thinker's hidden states [N, W] in the rows of an image to rows [N, H]."""
    return adaptor(tower(features))
