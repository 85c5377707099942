"""Parameters in a model's config.pbtxt."""

import json
import os
from pathlib import Path
from typing import Any

from stretto.config import parse_parameter
from stretto.families.base import Family
from stretto.families.registry import family_at


class ModelParameters:
    """String parameters of one model; paths are relative to the model's folder in the repository.

    All methods raise ValueError, naming the parameter, if it is missing or invalid.
    """

    def __init__(self, args: dict[str, Any]) -> None:
        self._folder = Path(args["model_repository"])
        self._kind, self._device_id = args["model_instance_kind"], args["model_instance_device_id"]
        self.strings: dict[str, str] = {
            name: value["string_value"] for name, value in json.loads(args["model_config"])["parameters"].items()
        }

    def number(self, name: str) -> int:
        """Return an integer of at least 1."""
        value: int = parse_parameter(name, int, self._text(name))
        if value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}")
        return value

    def seconds(self, name: str) -> float:
        """Return a duration of at least 0, in seconds."""
        value: float = parse_parameter(name, float, self._text(name))
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name} must be >= 0, got {value}")
        return value

    def path(self, name: str) -> Path:
        """Return a file or folder."""
        # normalised without resolving links, because the folder may be a link
        return Path(os.path.normpath(self._folder / self._text(name)))

    @property
    def device(self) -> str:
        """Return the device of the model's instance: `cuda:N` for KIND_GPU on GPU N, else `cpu`."""
        return f"cuda:{self._device_id}" if self._kind == "GPU" else "cpu"

    def family(self) -> Family:
        """Return the family of the model's checkpoint; raise CheckpointError if config.json names no known one."""
        return family_at(self.path("checkpoint"))

    def _text(self, name: str) -> str:
        if name not in self.strings:
            raise ValueError(f"{name} is missing from the parameters in config.pbtxt")
        return self.strings[name]
