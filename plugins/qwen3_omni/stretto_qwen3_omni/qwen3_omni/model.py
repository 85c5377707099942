"""The thinker's encoders of audio and images, whose output is as wide as the backbone."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import Qwen3OmniMoeVisionEncoderConfig
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeVisionEncoder

from stretto.family.image_encoder import ImageEncoder
from stretto.family.image_format import KEY, ImageFormat
from stretto.family.log_mel_encoder import audio_adaptor, audio_tower, embed_audio

__all__ = ["audio_adaptor", "audio_tower", "embed_audio", "embed_image", "image_encoder"]
# Hyperparameters in a published `vision_config`.
NUMBERS = (
    "depth",
    "hidden_size",
    "intermediate_size",
    "num_heads",
    "patch_size",
    "spatial_merge_size",
    "temporal_patch_size",
    "out_hidden_size",
    "num_position_embeddings",
)
LEVELS = "deepstack_visual_indexes"  # layers of the encoder whose output is added to that of the backbone's first ones


def tower_config(record: Mapping[str, Any]) -> Qwen3OmniMoeVisionEncoderConfig:
    """Return transformers' configuration of the image encoder for an `image_config`."""
    return Qwen3OmniMoeVisionEncoderConfig(**{name: record[name] for name in (*NUMBERS, LEVELS)})


def image_encoder(image_format: ImageFormat, backbone: Any, vllm_config: Any) -> ImageEncoder:
    """Create the image encoder for the `image_config` in config.json. Its weights are loaded later."""
    config = tower_config(getattr(vllm_config.model_config.hf_config, KEY))
    return ImageEncoder(Qwen3OmniMoeVisionEncoder(config).eval(), embed_image, image_format, backbone, vllm_config)


def embed_image(
    tower: Qwen3OmniMoeVisionEncoder, adaptor: nn.Identity, features: torch.Tensor, height: int, width: int
) -> torch.Tensor:
    """Encode one image to rows for the backbone and for its first L layers, [N, (1 + L) * H].

    Args:
        features: Patches, [F, M].
        height: Number of lines of rows.
        width: Number of rows in a line.
    """
    side = tower.spatial_merge_size
    grid = torch.tensor([[1, side * height, side * width]], device=features.device)
    output = tower(features.to(tower.dtype), grid_thw=grid)
    return torch.cat([output.pooler_output, *output.deepstack_features], 1)
