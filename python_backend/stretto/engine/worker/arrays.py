"""The few numbers per row that a step works on, as arrays of one of two libraries.

The rules are written once, in what numpy and torch have in common (`xp.where`, `xp.stack`, arithmetic, indexing).
Where the tables lie in host memory the step sees them as numpy arrays: on a few dozen numbers torch spends ten times
as long on finding out what to do. Elsewhere they are tensors, and nothing waits for the device.
"""

from types import ModuleType
from typing import Any, Protocol

import numpy as np
import torch

Array = Any  # np.ndarray or torch.Tensor, as the step's library has it


class Arrays(Protocol):
    """How a step's arrays are made. `xp` is numpy or torch."""

    xp: ModuleType

    def of(self, tensor: torch.Tensor) -> Array:
        """`tensor` as an array over the same memory."""

    def tensor(self, array: Array) -> torch.Tensor:
        """The inverse of `of`."""

    def zeros(self, *shape: int) -> Array:
        """Zeros, int64."""

    def int32(self, array: Array) -> Array:
        """`array` as 32-bit integers."""

    def upload(self, values: np.ndarray) -> Array:
        """`values`, which the host has, as an array; nothing waits."""


class HostArrays:
    """numpy, over tensors in host memory."""

    xp: ModuleType = np

    def of(self, tensor: torch.Tensor) -> Array:
        """`tensor` as an array over the same memory."""
        return tensor.numpy()

    def tensor(self, array: Array) -> torch.Tensor:
        """The inverse of `of`."""
        return torch.from_numpy(array)

    def zeros(self, *shape: int) -> Array:
        """Zeros, int64."""
        return np.zeros(shape, np.int64)

    def int32(self, array: Array) -> Array:
        """`array` as 32-bit integers."""
        return array.astype(np.int32)

    def upload(self, values: np.ndarray) -> Array:
        """`values` themselves."""
        return values


class DeviceArrays:
    """torch, over tensors on `device`."""

    xp: ModuleType = torch

    def __init__(self, device: torch.device):
        self._device, self._is_pinning = device, device.type == "cuda"

    def of(self, tensor: torch.Tensor) -> Array:
        """`tensor` itself."""
        return tensor

    def tensor(self, array: Array) -> torch.Tensor:
        """`array` itself."""
        return array

    def zeros(self, *shape: int) -> Array:
        """Zeros, int64."""
        return torch.zeros(shape, dtype=torch.int64, device=self._device)

    def int32(self, array: Array) -> Array:
        """`array` as 32-bit integers."""
        return array.to(torch.int32)

    def upload(self, values: np.ndarray) -> Array:
        """A copy on the device, by way of pinned memory; values that lie apart would be copied while the host waits."""
        tensor = torch.from_numpy(np.ascontiguousarray(values))
        if self._is_pinning:
            tensor = tensor.pin_memory()
        return tensor.to(self._device, non_blocking=True)


def arrays_on(device: torch.device) -> Arrays:
    """What a step on `device` works with."""
    return HostArrays() if device.type == "cpu" else DeviceArrays(device)
