"""Fake GPU for codecs: finds copies to the device, and queries that block the host.

torch's device `meta` represents the GPU. A CUDA graph cannot contain these: a copy from unpinned host memory ends the
capture.
"""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stretto.codecs.seanet import LENGTHS
from tests.sources import path_in_package

DEVICE = torch.device("meta")
MAKERS: set[Callable[..., Any]] = {torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy, Tensor.new_tensor}
ASKING = {"_local_scalar_dense", "nonzero", "masked_select", "unique_consecutive", "_unique2"}


class Crossings(TorchDispatchMode):
    """Recorder of operators that mix devices, or whose result the host needs to continue."""

    def __init__(self, seen: list[str]):
        super().__init__()
        self._seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._overloadpacket.__name__
        if name in ASKING and args[0].device == DEVICE:
            raise AssertionError(f"{name} at {place()}: its result is not known on the host")
        result = func(*args, **(kwargs or {}))
        tensors = [each for each in tree_leaves((args, kwargs, result)) if isinstance(each, Tensor)]
        if len({each.device for each in tensors}) > 1:
            self._seen.append(f"{name} at {place()}")
        return result


class Makers(TorchFunctionMode):
    """Recorder of tensors made from Python numbers, which `torch.tensor` writes to host memory and copies."""

    def __init__(self, seen: list[str]):
        super().__init__()
        self._seen = seen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in MAKERS and result.device == DEVICE:
            self._seen.append(f"{func.__name__} at {place()}")
        return result


def place() -> str:
    """Return the innermost line of our own code that is running."""
    ours = [each for each in traceback.extract_stack() if path_in_package(each.filename)]
    return f"{path_in_package(ours[-1].filename)}:{ours[-1].lineno}" if ours else "elsewhere"


@contextmanager
def crossings() -> Iterator[list[str]]:
    """Record transfers between host and device during the `with` block, with the lines that cause them."""
    seen: list[str] = []
    with Makers(seen), Crossings(seen):
        yield seen


def send_away(module: nn.Module) -> None:
    """Move weights to DEVICE, which loses their values; tensors that `load` keeps on the host stay there."""
    for owner in module.modules():
        for tensors in (owner._parameters, owner._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and name not in LENGTHS:
                    away = tensor.to(DEVICE)
                    tensors[name] = nn.Parameter(away, False) if isinstance(tensor, nn.Parameter) else away
