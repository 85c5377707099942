"""Tensors into a module whose names they have: nothing may be missing, unknown, or of another shape."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from stretto.errors import CheckpointError

NAMED = 8  # of so many tensors that do not fit, the names are said


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file in float32; CheckpointError where it is missing or none."""
    try:
        return {name: tensor.float() for name, tensor in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], place: Path, assign: bool = False) -> None:
    """Fill a module; CheckpointError names, after their place, the tensors that do not fit.

    assign: whether the module takes the tensors themselves, as one on the device `meta` must.
    """
    wanted = module.state_dict()
    wrong = sorted(name for name in wanted.keys() & tensors.keys() if wanted[name].shape != tensors[name].shape)
    if wrong or wanted.keys() != tensors.keys():
        missing, unknown = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
        raise CheckpointError(
            f"{place}: missing {missing[:NAMED]}, unknown {unknown[:NAMED]}, of another shape {wrong[:NAMED]}"
        )
    module.load_state_dict(tensors, assign=assign)
