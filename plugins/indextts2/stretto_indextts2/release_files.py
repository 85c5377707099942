"""Files of the releases that IndexTTS-2 consists of: pickled tensors, and plans of networks with weight norms.

Training state and other tensors that a network lacks are left out, as the authors' loaders do.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from stretto.errors import CheckpointError
from stretto.family.conversion import Network, merged, weight_normed
from stretto.weights.loading import Part, Plan, Shape, first, is_plain, read_pickled, shapes_read

# Ends of the names of a weight's directions and norms.
DIRECTIONS = ".weight_v"
NORMS = ".weight_g"
WEIGHT = ".weight"


def pickled_tensors(path: Path, *keys: str) -> dict[str, Tensor]:
    """Return the tensors by name at nested keys of a file that `torch.save` wrote.

    Raises:
        CheckpointError: If the file cannot be read, or has something else there.
    """
    contents: Any = read_pickled(path, stays_in_file=True)
    for key in keys:
        contents = contents.get(key) if isinstance(contents, dict) else None
    source = f"{path}: {'.'.join(keys)}".removesuffix(": ")
    if not isinstance(contents, dict) or not contents:
        raise CheckpointError(f"{source}: expected tensors by name, got {type(contents).__name__}")
    odd = [str(name) for name, value in contents.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if odd:
        raise CheckpointError(f"{source}: expected tensors by name, got other values in {first(sorted(odd))}")
    return contents


def pickled_tensor(path: Path) -> Tensor:
    """Return the tensor in a file that `torch.save` wrote; raise CheckpointError if there is something else."""
    tensor = read_pickled(path)
    if not isinstance(tensor, Tensor):
        raise CheckpointError(f"{path}: expected a tensor, got {type(tensor).__name__}")
    return tensor


def placed(tensors: Mapping[str, Tensor], prefix: str, below: str = "") -> dict[str, Tensor]:
    """Return the tensors whose names begin with `below`, which `prefix` replaces."""
    return {f"{prefix}{name.removeprefix(below)}": tensors[name] for name in tensors if name.startswith(below)}


def plain_shapes(tensors: Mapping[str, Tensor]) -> dict[str, Shape]:
    """Return the shapes of tensors by name, with weights in place of their directions and norms."""
    return {
        f"{name.removesuffix(DIRECTIONS)}{WEIGHT}" if name.endswith(DIRECTIONS) else name: tuple(tensor.shape)
        for name, tensor in tensors.items()
        if not name.endswith(NORMS)
    }


def network(folder: str, record: dict[str, Any], plan: Plan, tensors: Mapping[str, Tensor]) -> Network:
    """Return a network with the tensors that its plan reads; raise CheckpointError if one is not dense and real."""
    needed = {name: tensors[name] for name in shapes_read(plan) if name in tensors}
    odd = sorted(name for name, tensor in needed.items() if not is_plain(tensor))
    if odd:
        raise CheckpointError(f"{folder}: expected dense tensors of real numbers, got other values in {first(odd)}")
    return Network(folder, record, plan, needed)


def planned(name: str, shape: Shape, tensors: Mapping[str, Tensor]) -> Plan:
    """Return the plan of a tensor, whose weight norm is multiplied out if it is published with one.

    A linear layer may be published as a convolution with kernel size 1.
    """
    stem = name.removesuffix(WEIGHT)
    directions = tensors.get(f"{stem}{DIRECTIONS}") if name.endswith(WEIGHT) else None
    published = tensors.get(name) if directions is None else directions
    ones = (1,) if published is not None and published.ndim == len(shape) + 1 else ()
    if directions is None:
        return {name: Part(name, (*shape, *ones), _squeezed if ones else None)}
    norms = (shape[0], *(1 for _ in shape[1:]), *ones)
    stored = {f"{stem}{DIRECTIONS}": (*shape, *ones), f"{stem}{NORMS}": norms}
    return merged(name, _squeezed_product if ones else weight_normed, stored)


def _squeezed(weight: Tensor) -> Tensor:
    return weight[..., 0].contiguous()


def _squeezed_product(directions: Tensor, norms: Tensor) -> Tensor:
    return _squeezed(weight_normed(directions, norms))
