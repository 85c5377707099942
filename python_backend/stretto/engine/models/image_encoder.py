"""Image encoder inside a model, and the changes to the backbone that its rows need."""

from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.rotary_embedding import MRotaryEmbedding

from stretto.families.image_format import KEY, ImageFormat


class ImageEncoder(nn.Module):
    """Image encoder.

    Args:
        backbone: vLLM's model, without its head. Its rows get three positions each, and its first layers rows of the
            encoder.
        image_format: Input format.
        vllm_config: vLLM's configuration.

    Attributes:
        levels: Rows that are added to the output of the first L layers in the next step, [L, max rows, H].
    """

    def __init__(self, backbone: Any, image_format: ImageFormat, vllm_config: VllmConfig):
        super().__init__()
        config, max_rows = vllm_config.model_config, vllm_config.scheduler_config.max_num_batched_tokens
        self._network = image_format.load()
        self.tower = self._network.image_tower(getattr(config.hf_config, KEY))
        assert isinstance(config.dtype, torch.dtype)
        size = image_format.num_levels, max_rows, config.get_hidden_size()
        self.levels = nn.Buffer(torch.zeros(size, dtype=config.dtype), persistent=False)
        for layer, level in zip(backbone.layers, self.levels, strict=False):
            layer.register_buffer("level", level, persistent=False)
            layer.register_forward_hook(_add_level)
        stock = backbone.layers[0].self_attn.rotary_emb
        rotary = MRotaryEmbedding(
            stock.head_size,
            stock.rotary_dim,
            stock.max_position_embeddings,
            stock.base,
            stock.is_neox_style,
            stock.dtype,
            mrope_section=list(image_format.sections),
            mrope_interleaved=True,
            positions_factor=1,  # no position is larger than the row's index
        )
        for layer in backbone.layers:
            layer.self_attn.rotary_emb = rotary

    @classmethod
    def of(cls, backbone: Any, vllm_config: VllmConfig) -> "ImageEncoder | None":
        """Return the encoder that config.json describes, or None if there is none."""
        image_format = ImageFormat.from_config(vllm_config.model_config.hf_config.to_dict())
        return None if image_format is None else cls(backbone, image_format, vllm_config)

    def forward(self, adaptor: nn.Module, features: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Return the embedding rows [N, H] of one image, and beside them those for L layers, [N, (1 + L) * H].

        Args:
            adaptor: Adaptor of the model's audio encoder.
            features: Encoder input, [F, M].
            height: Number of lines of rows.
            width: Number of rows in a line.
        """
        rows: torch.Tensor = self._network.embed_image(self.tower, adaptor, features, height, width)
        return rows


def _add_level(layer: Any, _: Any, output: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    hidden, residual = output
    return hidden + layer.level[: hidden.shape[0]], residual
