"""Kernel that splits float32 signals into TF32 parts in one pass over memory (`stretto.decoder.convolutions`)."""

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


def split_on_device(out: Tensor, x: Tensor) -> None:
    """Write the high, the low and again the high parts of a signal.

    Args:
        out: Result, float32 [B, 3 · C, n], contiguous.
        x: Signal, float32 [B, C, n], contiguous.
    """
    size = x[0].numel()
    split_kernel[len(x), triton.cdiv(size, BLOCK)](out, x, size, BLOCK)


@triton.jit
def split_kernel(out: tl.tensor, x: tl.tensor, size: tl.tensor, block: tl.constexpr) -> None:
    """Split `block` numbers of a row of `size` numbers."""
    row = tl.program_id(0).to(tl.int64)
    places = tl.program_id(1) * block + tl.arange(0, block)
    is_inside = places < size
    number = tl.load(x + row * size + places, is_inside)
    high = _to_tf32(number)
    row_out = out + row * 3 * size + places
    tl.store(row_out, high, is_inside)
    tl.store(row_out + size, _to_tf32(number - high), is_inside)
    tl.store(row_out + 2 * size, high, is_inside)


@triton.jit
def _to_tf32(number: tl.tensor) -> tl.tensor:
    """Round to the 11 significant bits of TF32, ties away from zero."""
    bits = number.to(tl.int32, bitcast=True)
    return ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
