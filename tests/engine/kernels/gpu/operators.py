"""Counters of operators that launch work on a device, and of Triton kernel launches."""

from collections import Counter
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

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
