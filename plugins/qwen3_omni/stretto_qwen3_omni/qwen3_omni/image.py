"""Input of the thinker's image encoder: patches of an image, as transformers' image processor makes them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from stretto.errors import InvalidRequest
from stretto.records.prompt import InputImage

# an image is scaled to this size; the published limit is 12.8 million
MIN_PIXELS = 56 * 56
MAX_PIXELS = 1 << 20
MAX_RATIO = 200  # maximum ratio of an image's sides, as in transformers
# mean and standard deviation of each colour, as in the published preprocessor_config.json
CENTRE = 0.5
SPAN = 0.5


@dataclass(frozen=True)
class Patches:
    """Sizes of an image encoder's patches.

    Attributes:
        size: Pixels in a side of a patch.
        copies: Number of times that each patch is given, as the frames of a still video.
        merged: Patches in a side of the square that becomes a row.
    """

    size: int
    copies: int
    merged: int

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        return cls(record["patch_size"], record["temporal_patch_size"], record["spatial_merge_size"])

    def read(self, pixels: np.ndarray, path: str, first_row: int) -> InputImage:
        """Return the encoder's input for an image, uint8 [height, width, 3]; raise InvalidRequest if too narrow."""
        height, width = pixels.shape[:2]
        if max(height, width) > MAX_RATIO * min(height, width):
            raise InvalidRequest(path, f"sides of a ratio of at most {MAX_RATIO}", f"{width} x {height} pixels")
        processed = self._processor()(images=[pixels], input_data_format="channels_last", return_tensors="np")
        _, lines, columns = processed["image_grid_thw"][0].tolist()
        return InputImage(first_row, lines // self.merged, columns // self.merged, processed["pixel_values"])

    def _processor(self) -> Any:
        return Qwen2VLImageProcessorPil(
            patch_size=self.size,
            temporal_patch_size=self.copies,
            merge_size=self.merged,
            image_mean=[CENTRE] * 3,
            image_std=[SPAN] * 3,
            size={"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS},
        )
