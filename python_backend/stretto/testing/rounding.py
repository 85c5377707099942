"""Comparison of matrix products, as exact as this processor's rounding permits."""

import torch

# With AVX2 only, float32 products differ in the last bit, depending on the other rows and on the place in memory.
TOLERANCE = 0.0 if torch.backends.cpu.get_cpu_capability().startswith("AVX512") else 1e-6


def is_same(tensor: torch.Tensor, other: torch.Tensor) -> bool:
    """Return True if two tensors are equal, except for the processor's rounding of products."""
    if tensor.shape != other.shape or tensor.dtype != other.dtype:
        return False
    return torch.equal(tensor, other) or bool((tensor.double() - other.double()).abs().max() <= TOLERANCE)
