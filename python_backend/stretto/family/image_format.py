"""Input format of a model's image encoder."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from stretto.errors import CheckpointError, InvalidRequest, shown
from stretto.family.plugin import plugins
from stretto.records.prompt import Prompt

KEY = "image_config"  # key of the encoder's configuration in a checkpoint's config.json


@dataclass(frozen=True, slots=True)
class ImageFormat:
    """Input format of an image encoder.

    Attributes:
        network: Name of the module with the encoder's network (`FamilyPlugin.image_encoders`).
        feature_size: Numbers in each frame of the encoder's input.
        sections: Number of pairs of an attention head's values that are rotated by time, by line and by column
            (`RowRotation`); the three take turns.
        num_levels: Number of the backbone's first layers to whose output the encoder adds rows of its own.
    """

    network: str
    feature_size: int
    frames_per_row: int
    sections: tuple[int, int, int]
    num_levels: int = 0

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "ImageFormat | None":
        """Return the format in config.json, None without an image encoder; raise CheckpointError if it is unknown."""
        record = config.get(KEY)
        if record is None:
            return None
        model_type = record.get("model_type") if isinstance(record, Mapping) else record
        networks = {name: network for plugin in plugins() for name, network in plugin.image_encoders.items()}
        if not isinstance(model_type, str) or model_type not in networks:
            raise CheckpointError(
                f"config.json: {KEY}: expected model_type {', '.join(sorted(networks))}, got {shown(model_type)}"
            )
        numbers = {name: record[name] for name in ("feature_size", "frames_per_row", "num_levels")}
        time, line, column = record["sections"]
        return cls(networks[model_type], **numbers, sections=(time, line, column))

    def encoder(self, backbone: Any, vllm_config: Any) -> Any:
        """Return the encoder for vLLM's model without its head, and vLLM's configuration."""
        return import_module(self.network).image_encoder(self, backbone, vllm_config)


def check_images(prompt: Prompt, image_format: ImageFormat | None) -> None:
    """Raise InvalidRequest if an image does not fit the prompt's rows or the encoder's input format."""
    end = 0
    for index, image in enumerate(prompt.images):
        field = f"images[{index}]"
        if image_format is None:
            raise InvalidRequest(field, "no image (this model has no image encoder)", f"{image.num_rows} rows")
        shape = [image_format.frames_per_row * image.num_rows, image_format.feature_size]
        if list(image.features.shape) != shape or image.features.dtype != np.float32:
            got = f"{image.features.dtype} {list(image.features.shape)}"
            raise InvalidRequest(field, f"float32 {shape} for {image.height} x {image.width} rows", got)
        if not np.isfinite(image.features).all():
            raise InvalidRequest(field, "finite features", "NaN or infinity")
        if not end <= image.first_row <= len(prompt.rows) - image.num_rows:
            raise InvalidRequest(field, f"a first row in [{end}, {len(prompt.rows) - image.num_rows}]", image.first_row)
        end = image.first_row + image.num_rows
