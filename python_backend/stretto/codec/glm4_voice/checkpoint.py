"""Reader of `flow.pt` and `hift.pt` beside `config.yaml`, as published; only tensors are unpickled."""

from pathlib import Path

from torch import Tensor, nn

from stretto.codec.espnet_dac_checkpoint import multiply_weight_norm_out
from stretto.codec.strict_loading import load_strictly, read_tensors
from stretto.errors import CheckpointError

PARTS = ("flow", "hift")


def read_part(directory: Path, part: str) -> dict[str, Tensor]:
    """Return the tensors of one part in float32, weight norms multiplied out; raise CheckpointError if missing."""
    path = directory / f"{part}.pt"
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    return multiply_weight_norm_out(read_tensors(path))


def load_part(module: nn.Module, directory: Path, part: str) -> None:
    """Load the tensors of a part into a module; raise CheckpointError for mismatches."""
    load_strictly(module, read_part(directory, part), directory / f"{part}.pt")
