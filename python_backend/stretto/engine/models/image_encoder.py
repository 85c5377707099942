"""Image encoder inside a model, and the changes to the backbone that its rows need."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig

from stretto.families.image_format import KEY, ImageFormat


class ImageEncoder(nn.Module):
    """Image encoder.

    Args:
        backbone: vLLM's model, without its head. Its rows get three positions each (`RowRotation`), and its first
            layers rows of the encoder.
        image_format: Input format.
        vllm_config: vLLM's configuration.

    Attributes:
        levels: Rows that are added to the output of the first L layers in the next step, [L, max rows, H].
        rotation: Rotary embedding of the next step's rows.
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
        self.rotation = RowRotation(backbone, image_format.sections, max_rows)

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


class RowRotation:
    """Rotary embedding of rows with three positions each (`positions_of`).

    The layers look up the cosines and sines of a step's row by its number in the step, in a table that is written
    before the step. So they run vLLM's operators for rows with one position, which are faster than those for three.

    Args:
        backbone: vLLM's model, whose layers get the table.
        sections: Number of angles of a head that follow time, line and column of a row (`ImageFormat`).
        max_rows: Number of rows in the largest step.
    """

    def __init__(self, backbone: Any, sections: Sequence[int], max_rows: int):
        stock = backbone.layers[0].self_attn.rotary_emb
        self._of_position: torch.Tensor = stock.cos_sin_cache  # [P, D]: cosines of D / 2 angles, then their sines
        self._of_row = self._of_position.new_zeros(max_rows, self._of_position.shape[1])
        self._columns = torch.arange(self._of_row.shape[1], device=self._of_row.device)[:, None]
        angles = self._columns[:, 0] % (len(self._columns) // 2)
        self._axes = torch.zeros_like(angles)  # of angles: 0 for time, 1 for line, 2 for column
        for axis in (1, 2):
            self._axes[(angles % 3 == axis) & (angles < 3 * sections[axis])] = axis
        rotary = deepcopy(stock)  # vLLM shares it with other models
        rotary.cos_sin_cache = self._of_row
        for layer in backbone.layers:
            layer.self_attn.rotary_emb = rotary

    def fill(self, positions: torch.Tensor) -> None:
        """Write the table for a step's rows, given their positions, int64 [3, N]."""
        self._of_row[: positions.shape[1]] = self._of_position[positions[self._axes], self._columns].T


def _add_level(layer: Any, _: Any, output: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    hidden, residual = output
    return hidden + layer.level[: hidden.shape[0]], residual
