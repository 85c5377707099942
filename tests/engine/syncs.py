"""Count operations that would make the host wait for a GPU, in a step that runs on the CPU as on a GPU."""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import stretto
from tests.sources import path_in_package

PACKAGE = Path(stretto.__file__).parent
VLLM = f"{Path('site-packages') / 'vllm'}"
# Code that runs on the CPU only: twins of kernels, the CPU's draw, and interpreted kernels.
TWINS = tuple(str(PACKAGE / part) for part in ("cpu_backend/", "engine/sampling/", "engine/kernels/gpu/"))
METHODS = ("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__", "__index__", "__array__")
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2", "unique_consecutive"}


def waiter() -> str | None:
    """Return the line of our code that waits, or None if vLLM or a CPU twin waits."""
    frame, place = sys._getframe(2), None
    while frame is not None and VLLM not in frame.f_code.co_filename:
        name = frame.f_code.co_filename
        if name.startswith(TWINS):
            return None
        if place is None and (path := path_in_package(name)):
            place = f"{path}:{frame.f_lineno}"
        frame = frame.f_back
    return place


class Dispatch(TorchDispatchMode):
    """Dispatch mode that detects operators whose result the host needs: values, and shapes that depend on values."""

    def __init__(self, seen: Counter[str]):
        super().__init__()
        self._seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        is_mask = any(isinstance(index, torch.Tensor) and index.dtype == torch.bool for index in indices)
        repeats = name == "repeat_interleave" and (kwargs or {}).get("output_size") is None
        if (name in WAITING or is_mask or repeats) and (place := waiter()):
            self._seen[f"{name} at {place}"] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Count waits by operation and line of our code during the `with` block."""
    seen: Counter[str] = Counter()

    def watch(method: str) -> None:
        inner = getattr(torch.Tensor, method)

        def asked(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if place := waiter():
                seen[f"{method} at {place}"] += 1
            return inner(self, *args, **kwargs)

        patch.setattr(torch.Tensor, method, asked)

    def watch_pinning() -> None:
        """Record copies of non-contiguous tensors, which pass through unpinned memory and may block the host."""
        inner = torch.Tensor.pin_memory

        def pinned(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            if not self.is_contiguous() and (place := waiter()):
                seen[f"pin_memory in pieces at {place}"] += 1
            return inner(self, *args, **kwargs)

        patch.setattr(torch.Tensor, "pin_memory", pinned)

    with monkeypatch.context() as patch, Dispatch(seen):
        for method in METHODS:
            watch(method)
        watch_pinning()
        yield seen
