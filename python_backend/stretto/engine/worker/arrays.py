"""Small per-row arrays of a step, in numpy or torch.

The rules are written once in the common subset of both libraries (`xp.where`, `xp.stack`, arithmetic, indexing). On the
CPU numpy is used, because for a few dozen numbers torch takes ten times as long to dispatch. On a GPU everything is a
tensor, and no operation waits for the device.
"""

from types import ModuleType
from typing import Any, Protocol

import numpy as np
import torch

Array = Any  # np.ndarray or torch.Tensor


class Arrays(Protocol):
    """Factory of a step's arrays; `xp` is numpy or torch."""

    xp: ModuleType

    def of(self, tensor: torch.Tensor) -> Array:
        """Return `tensor` as an array over the same memory."""

    def tensor(self, array: Array) -> torch.Tensor:
        """Return `array` as a tensor over the same memory."""

    def zeros(self, *shape: int) -> Array:
        """Return int64 zeros."""

    def int32(self, array: Array) -> Array:
        """Return `array` as 32-bit integers."""

    def upload(self, values: np.ndarray) -> Array:
        """Return the host array `values` as an array of the step's library, without waiting for the device."""


class HostArrays:
    """numpy arrays over tensors in host memory."""

    xp: ModuleType = np

    def of(self, tensor: torch.Tensor) -> Array:
        """Return `tensor` as an array over the same memory."""
        return tensor.numpy()

    def tensor(self, array: Array) -> torch.Tensor:
        """Return `array` as a tensor over the same memory."""
        return torch.from_numpy(array)

    def zeros(self, *shape: int) -> Array:
        """Return int64 zeros."""
        return np.zeros(shape, np.int64)

    def int32(self, array: Array) -> Array:
        """Return `array` as 32-bit integers."""
        return array.astype(np.int32)

    def upload(self, values: np.ndarray) -> Array:
        """Return `values` unchanged."""
        return values


class DeviceArrays:
    """torch tensors on `device`."""

    xp: ModuleType = torch

    def __init__(self, device: torch.device):
        self._device, self._is_pinning = device, device.type == "cuda"

    def of(self, tensor: torch.Tensor) -> Array:
        """Return `tensor` unchanged."""
        return tensor

    def tensor(self, array: Array) -> torch.Tensor:
        """Return `array` unchanged."""
        return array

    def zeros(self, *shape: int) -> Array:
        """Return int64 zeros."""
        return torch.zeros(shape, dtype=torch.int64, device=self._device)

    def int32(self, array: Array) -> Array:
        """Return `array` as 32-bit integers."""
        return array.to(torch.int32)

    def upload(self, values: np.ndarray) -> Array:
        """Return a copy on the device through pinned memory; made contiguous, so that the copy is asynchronous."""
        tensor = torch.from_numpy(np.ascontiguousarray(values))
        if self._is_pinning:
            tensor = tensor.pin_memory()
        return tensor.to(self._device, non_blocking=True)


def arrays_on(device: torch.device) -> Arrays:
    """Return the array factory for steps on `device`."""
    return HostArrays() if device.type == "cpu" else DeviceArrays(device)
