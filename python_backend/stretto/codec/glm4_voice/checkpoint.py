"""`flow.pt` and `hift.pt` beside `config.yaml`, as published: tensors alone are read of a pickle, nothing is run."""

from pathlib import Path

from torch import Tensor, nn

from stretto.codec.espnet_dac_checkpoint import multiply_weight_norm_out
from stretto.codec.strict_loading import load_strictly, read_tensors
from stretto.errors import CheckpointError

PARTS = ("flow", "hift")


def read_part(directory: Path, part: str) -> dict[str, Tensor]:
    """The tensors of one part in float32, weight norms multiplied out; CheckpointError where there are none."""
    path = directory / f"{part}.pt"
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    return multiply_weight_norm_out(read_tensors(path))


def load_part(module: nn.Module, directory: Path, part: str) -> None:
    """Fill a module with the tensors of a part; CheckpointError names those that do not fit."""
    load_strictly(module, read_part(directory, part), directory / f"{part}.pt")
