"""`flow.pt` and `hift.pt` beside `config.yaml`, as published: tensors alone are read of a pickle, nothing is run."""

import pickle
from pathlib import Path

import torch
from torch import Tensor, nn

from stretto.codec.espnet_dac_checkpoint import multiply_weight_norm_out
from stretto.codec.strict_loading import load_strictly
from stretto.errors import CheckpointError

PARTS = ("flow", "hift")


def read_part(directory: Path, part: str) -> dict[str, Tensor]:
    """The tensors of one part in float32, weight norms multiplied out; CheckpointError where there are none."""
    path = directory / f"{part}.pt"
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    try:
        published = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path}: expected tensors, got {error}") from error
    is_named = isinstance(published, dict) and all(isinstance(each, Tensor) for each in published.values())
    if not is_named:
        raise CheckpointError(f"{path}: expected tensors by name, got {type(published).__name__}")
    return multiply_weight_norm_out({name: tensor.float() for name, tensor in published.items()})


def load_part(module: nn.Module, directory: Path, part: str) -> None:
    """Fill a module with the tensors of a part; CheckpointError names those that do not fit."""
    load_strictly(module, read_part(directory, part), directory / f"{part}.pt")
