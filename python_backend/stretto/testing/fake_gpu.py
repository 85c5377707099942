"""Fake GPUs for codecs: torch's device `meta`, which computes nothing, and Triton's interpreter in host memory.

On `meta`, copies to the device, queries that block the host, and launches are counted. A CUDA graph cannot contain a
copy from unpinned host memory, nor a query.
"""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stretto.codecs import streaming
from stretto.codecs.kernels import operators
from stretto.codecs.seanet import LENGTHS

DEVICE = torch.device("meta")
MAKERS: set[Callable[..., Any]] = {torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy, Tensor.new_tensor}
ASKING = {"_local_scalar_dense", "nonzero", "masked_select", "unique_consecutive", "_unique2"}


class Crossings(TorchDispatchMode):
    """Recorder of operators that mix devices. Operators that wait for a result on the host raise AssertionError."""

    def __init__(self, seen: list[str]) -> None:
        super().__init__()
        self._seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._overloadpacket.__name__
        if name in ASKING and args[0].device == DEVICE:
            raise AssertionError(f"{name} at {running_line()}: its result is not known on the host")
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
        if len({tensor.device for tensor in tensors}) > 1:
            self._seen.append(f"{name} at {running_line()}")
        return result


class Makers(TorchFunctionMode):
    """Recorder of device tensors made from Python numbers, which torch writes to host memory and then copies."""

    def __init__(self, seen: list[str]) -> None:
        super().__init__()
        self._seen = seen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in MAKERS and result.device == DEVICE:
            self._seen.append(f"{func.__name__} at {running_line()}")
        return result


class Copies(TorchDispatchMode):
    """Counter of copies from the device to the host, which yield zeros; other ways to wait for the device fail."""

    num = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._overloadpacket.__name__
        kwargs = kwargs or {}
        is_on_device = bool(args) and isinstance(args[0], Tensor) and args[0].device == DEVICE
        assert not (is_on_device and name in ASKING), f"{name} waits for the device"
        try:
            return func(*args, **kwargs)
        except NotImplementedError:  # a copy to the host, which has no values
            assert name in ("to", "_to_copy"), name
            self.num += 1
            dtypes = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.dtype)]
            return torch.zeros(args[0].shape, dtype=next(iter(dtypes), args[0].dtype))


class Launches(TorchDispatchMode):
    """Recorder of operators that compute on the device; a library may launch several kernels for one."""

    def __init__(self) -> None:
        super().__init__()
        self.names = list[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        aliases = [returned.alias_info for returned in func._schema.returns]
        is_view = all(alias is not None and not alias.is_write for alias in aliases)
        on_device = any(isinstance(leaf, Tensor) and leaf.device == DEVICE for leaf in tree_leaves(result))
        name = func._overloadpacket.__name__
        if on_device and not is_view and "empty" not in name:
            self.names.append(name)
        return result


def running_line() -> str:
    """Return the innermost line outside torch and this file that is running."""
    frames = [frame for frame in traceback.extract_stack() if "/torch/" not in frame.filename]
    lines = [f"{frame.filename}:{frame.lineno}" for frame in frames if frame.filename != __file__]
    return lines[-1]


@contextmanager
def crossings() -> Iterator[list[str]]:
    """Record transfers between host and device during the `with` block, with the lines that cause them."""
    seen = list[str]()
    with Makers(seen), Crossings(seen):
        yield seen


def send_to_device(module: nn.Module) -> None:
    """Move weights to DEVICE, which loses their values; tensors that `load` keeps on the host stay there."""
    for owner in module.modules():
        stored: tuple[dict[str, Any], ...] = (owner._parameters, owner._buffers)
        for tensors in stored:
            for name, tensor in tensors.items():
                if tensor is not None and name not in LENGTHS:
                    moved = tensor.to(DEVICE)
                    tensors[name] = nn.Parameter(moved, False) if isinstance(tensor, nn.Parameter) else moved


@contextmanager
def layout_of_a_gpu() -> Iterator[None]:
    """Keep signals in the layout of a GPU, in which each layer is a convolution of torch."""
    with patch.object(streaming, "is_time_major", lambda x: False):
        yield


@contextmanager
def kernels_on_host() -> Iterator[None]:
    """Let codecs use their kernels in the `with` block, on signals in host memory, in the layout of a GPU."""
    library = torch.library.Library("stretto", "FRAGMENT")
    for name, kernel in operators.KERNELS.items():
        library.impl(name, kernel, "CPU")
    try:
        with layout_of_a_gpu(), patch.object(operators, "DEVICES", {"cpu"}), torch.inference_mode():
            yield
    finally:
        library._destroy()
