"""Files of IndexTTS-2's releases: pickled tensors, and plans of networks with weight norms.

Training state and other tensors that a network lacks are left out, as the authors' loaders do.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from stretto.codecs.espnet_dac import multiply_weight_norm_out
from stretto.errors import CheckpointError
from stretto.weights.loading import Part, Plan, Shape, first, is_plain, read_pickled


def pickled_tensors(path: Path, *keys: str) -> dict[str, Tensor]:
    """Return the tensors by name at nested keys of a file that `torch.save` wrote."""
    contents: Any = read_pickled(path, stays_in_file=True)
    for key in keys:
        contents = contents.get(key) if isinstance(contents, dict) else None
    source = f"{path}: {'.'.join(keys)}"
    if not isinstance(contents, dict) or not contents:
        raise CheckpointError(f"{source}: expected tensors by name, got {type(contents).__name__}")
    odd = [str(name) for name, value in contents.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if odd:
        raise CheckpointError(f"{source}: expected tensors by name, got other values in {first(sorted(odd))}")
    return contents


def pickled_tensor(path: Path) -> Tensor:
    """Return the tensor in a file that `torch.save` wrote."""
    tensor = read_pickled(path, stays_in_file=True)
    if not isinstance(tensor, Tensor):
        raise CheckpointError(f"{path}: expected a tensor, got {type(tensor).__name__}")
    return tensor


def renamed(tensors: Mapping[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with `old`, which `new` replaces."""
    return {f"{new}{name.removeprefix(old)}": tensors[name] for name in tensors if name.startswith(old)}


def plain_weights(tensors: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """Return the tensors with weight norms multiplied out; raise CheckpointError if one is not dense and real."""
    odd = sorted(name for name, tensor in tensors.items() if not is_plain(tensor))
    if odd:
        raise CheckpointError(f"{folder}: expected dense tensors of real numbers, got other values in {first(odd)}")
    return multiply_weight_norm_out(tensors)


def plan_of(shapes: Mapping[str, Shape], tensors: Mapping[str, Tensor]) -> Plan:
    """Return the plan of tensors with these shapes. A linear layer may be published as a convolution of size 1."""
    plan: Plan = {}
    for name, shape in shapes.items():
        is_convolution = name in tensors and tensors[name].ndim == len(shape) + 1
        plan[name] = Part(name, (*shape, 1), _squeezed) if is_convolution else Part(name, shape)
    return plan


def _squeezed(weight: Tensor) -> Tensor:
    return weight[..., 0].contiguous()
