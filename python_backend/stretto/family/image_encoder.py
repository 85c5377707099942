"""Image encoder that also adds rows to the output of layers, and rotary positions of rows with images."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from stretto.family.image_format import ImageFormat
from stretto.records.prompt import InputImage


class ImageEncoder(nn.Module):
    """Image encoder inside a model (`FamilyPlugin.image_encoders`).

    Args:
        embed: Function of (tower, adaptor of audio, features, height, width) that returns the rows of an image.
        backbone: vLLM's model, without its head. Its rows get three positions each (`RowRotation`). The encoder's rows
            are added to the output of its first layers.

    Attributes:
        levels: Rows that are added to the output of the first L layers in the next step, [L, max rows, H].
        rotation: Rotary embedding of the next step's rows.
    """

    def __init__(
        self,
        tower: nn.Module,
        embed: Callable[..., torch.Tensor],
        image_format: ImageFormat,
        backbone: Any,
        vllm_config: Any,
    ):
        super().__init__()
        config = vllm_config.model_config
        max_rows = vllm_config.scheduler_config.max_num_batched_tokens
        self.tower = tower
        self._embed = embed
        size = image_format.num_levels, max_rows, config.get_hidden_size()
        self.levels = nn.Buffer(torch.zeros(size, dtype=config.dtype), persistent=False)
        for layer, level in zip(backbone.layers, self.levels, strict=False):
            layer.register_buffer("level", level, persistent=False)
            layer.register_forward_hook(_add_level)
        self.rotation = RowRotation(backbone, image_format.sections, max_rows)

    def forward(self, adaptor: nn.Module, features: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Return the embedding rows of an image, then the rows for L layers, [N, (1 + L) * H], for features [F, M]."""
        return self._embed(self.tower, adaptor, features, height, width)


def positions_of(images: Sequence[InputImage], first: int, last: int) -> NDArray[np.int64]:
    """Return the positions of a request's rows `first` to `last` - 1: time, line and column, int64 [3, n].

    The three are equal in rows without an image. The positions of an image begin after the previous row's, and the
    position of the next row follows the largest of them:

        row       0  1 │ 2  3  4  5  6  7 │ 8      an image of 2 lines of 3 rows
        time      0  1 │ 2  2  2  2  2  2 │ 5
        line      0  1 │ 2  2  2  3  3  3 │ 5
        column    0  1 │ 2  3  4  2  3  4 │ 5
    """
    rows = np.arange(first, last)
    positions = np.tile(rows, (3, 1))
    for image in images:
        index = rows - image.first_row
        within = (index >= 0) & (index < image.num_rows)
        positions[:, within] -= index[within]
        positions[1, within] += index[within] // image.width
        positions[2, within] += index[within] % image.width
        positions[:, index >= image.num_rows] -= image.num_rows - max(image.height, image.width)
    return positions


class RowRotation:
    """Rotary embedding of rows with three positions each (`positions_of`).

    The layers look up the cosines and sines of a step's row by its number in the step, in a table that is written
    before the step. They can then use vLLM's operators for one position per row, which are faster than those for three.

    Args:
        backbone: vLLM's model, whose layers get the table.
        sections: Number of angles of a head that follow time, line and column of a row (`ImageFormat`).
    """

    def __init__(self, backbone: Any, sections: Sequence[int], max_rows: int):
        stock = backbone.layers[0].self_attn.rotary_emb
        self._of_position: torch.Tensor = stock.cos_sin_cache  # [P, D]: cosines of D / 2 angles, then their sines
        self._of_row = self._of_position.new_zeros(max_rows, self._of_position.shape[1])
        self._columns = torch.arange(self._of_row.shape[1], device=self._of_row.device)[:, None]
        angles = self._columns[:, 0] % (len(self._columns) // 2)
        self._positions = torch.zeros(3, max_rows, dtype=torch.int64, device=angles.device)
        self._images: dict[int, tuple[InputImage, ...]] = {}  # by slot
        self._axes = torch.zeros_like(angles)  # axis of each angle: 0 for time, 1 for line, 2 for column
        for axis in (1, 2):
            self._axes[(angles % 3 == axis) & (angles < 3 * sections[axis])] = axis
        rotary = deepcopy(stock)  # vLLM shares it with other models
        rotary.cos_sin_cache = self._of_row
        for layer in backbone.layers:
            layer.self_attn.rotary_emb = rotary

    def fill_slot(self, slot: int, images: tuple[InputImage, ...]) -> None:
        """Store the images of the request in `slot`, which determine the positions of its rows."""
        self.forget(slot)
        if images:
            self._images[slot] = images

    def forget(self, slot: int) -> None:
        """Drop the images of `slot`."""
        self._images.pop(slot, None)

    def fill(self, batch: Any, upload: Callable[[np.ndarray], torch.Tensor]) -> None:
        """Write the table for the rows of a step; `upload` copies an array to the device."""
        positions = self._positions[:, : batch.num_tokens_after_padding]
        positions[:] = batch.positions[: batch.num_tokens_after_padding]
        slots = batch.idx_mapping_np.tolist() if self._images else ()
        for index, slot in enumerate(slots):
            if slot in self._images:
                first = int(batch.num_computed_tokens_np[index])
                begins = int(batch.query_start_loc_np[index])
                number = int(batch.num_scheduled_tokens[index])
                positions_of_request = positions_of(self._images[slot], first, first + number)
                positions[:, begins : begins + number] = upload(np.ascontiguousarray(positions_of_request))
        self._of_row[: positions.shape[1]] = self._of_position[positions[self._axes], self._columns].T


def _add_level(layer: Any, _: Any, output: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    hidden, residual = output
    return hidden + layer.level[: hidden.shape[0]], residual
