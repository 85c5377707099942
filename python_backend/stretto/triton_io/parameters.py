"""The parameters in a model's config.pbtxt."""

import json
import os
from pathlib import Path
from typing import Any

from stretto.families.base import Family
from stretto.families.registry import family_at


class ModelParameters:
    """The string parameters of one model; a path is relative to the model's own folder in the repository."""

    def __init__(self, args: dict[str, Any]) -> None:
        self._folder = Path(args["model_repository"])
        self._kind, self._device_id = args["model_instance_kind"], args["model_instance_device_id"]
        self.strings: dict[str, str] = {
            name: value["string_value"] for name, value in json.loads(args["model_config"])["parameters"].items()
        }

    def number(self, name: str) -> int:
        """A whole number."""
        return int(self.strings[name])

    def seconds(self, name: str) -> float:
        """A length of time."""
        return float(self.strings[name])

    def path(self, name: str) -> Path:
        """A file or folder."""
        return Path(os.path.normpath(self._folder / self.strings[name]))  # by name: the folder may be a link

    @property
    def device(self) -> str:
        """Where the model's instance is to run: `cuda:N` for KIND_GPU on GPU N of its instance group, else `cpu`."""
        return f"cuda:{self._device_id}" if self._kind == "GPU" else "cpu"

    def family(self) -> Family:
        """The family of the model's checkpoint; CheckpointError when its `config.json` does not name a known one."""
        return family_at(self.path("checkpoint"))
