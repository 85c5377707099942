"""Random checkpoints for tests: those that the benchmarks write, and of models that tests alone have."""

import json
from pathlib import Path
from typing import Any

from benchmarks.checkpoints.random_checkpoint import write_checkpoint as write_random_checkpoint
from stretto.families.base import Family

__all__ = ["write_checkpoint"]


def write_checkpoint(folder: Path, family: Family, name: str, **shape: Any) -> Path:
    """A random checkpoint; for a `family` with bursts, of the model whose further rows follow by a rule."""
    write_random_checkpoint(folder, family, name, **shape)
    if family.bursts is not None:
        from tests.forced_bursts import register

        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "architectures": [register()]}))
    return folder
