"""Counters of operators that launch work on a device, and of Triton kernel launches."""

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operators that launch nothing on a device.
FREE = {
    "view", "_unsafe_view", "reshape", "slice", "select", "transpose", "permute", "expand", "unsqueeze", "squeeze",
    "split", "split_with_sizes", "t", "alias", "as_strided", "detach", "chunk", "unflatten", "flatten", "empty",
    "empty_like", "new_empty", "empty_strided", "_reshape_alias", "unbind", "narrow", "lift_fresh", "is_same_size",
}  # fmt: skip


class Count(TorchDispatchMode):
    """Counter of operators that launch work."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._overloadpacket.__name__
        self.operators[name] += name not in FREE
        return func(*args, **(kwargs or {}))


class Launches:
    """Fake kernel that counts its launches."""

    def __init__(self) -> None:
        self.count = 0

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*args: Any, **options: Any) -> None:
            self.count += 1

        return launch


class OnDevice(TorchDispatchMode):
    """Counter of operators that fails if one reads or writes memory of a device other than `device`."""

    def __init__(self, device: str):
        super().__init__()
        self.count, self._device = 0, device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [each for each in tree_leaves((args, kwargs, result)) if isinstance(each, torch.Tensor)]
        elsewhere = [each for each in tensors if each.device.type != self._device and each.dim()]
        assert not elsewhere, f"{func} cannot be captured, because it uses {elsewhere}"
        self.count += 1
        return result


def count_operators(name: str, device: str) -> int:
    """Run the array path of a `benchmarks.gpu.step_paths` case at its published width; return its operators.

    Any wait for the device and any copy from the host is an error.
    """
    from benchmarks.gpu import step_paths
    from benchmarks.gpu.jobs import Setup

    case = step_paths.case_of(Setup(device, Path()), name, 16)
    with step_paths.opaque_draws(), torch.no_grad():
        path = case.arrays(step_paths.readout_of(case.rules, case.width, case.device, case.dtype))
        with OnDevice(case.device.type) as watch:
            path.launch()
    tokens, codes, _ = path.rows()
    assert codes.device.type == case.device.type
    width = case.family.layout.num_input_streams - 1 + len(case.rules.sent_state)
    assert (tokens.shape, codes.shape) == ((16,), (16, width))
    return watch.count
