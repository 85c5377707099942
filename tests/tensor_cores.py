"""Parts of Triton's interpreter that treat bfloat16 numbers as a GPU does."""

from typing import Any

import numpy as np
import torch
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def as_float(operand: TensorHandle) -> np.ndarray:
    """Return numbers as float32; the interpreter keeps the bits of bfloat16 numbers."""
    if operand.data.dtype == np.float32:
        return operand.data
    return (operand.data.astype(np.uint32) << 16).view(np.float32)


def round_to_nearest(self: InterpreterBuilder, numbers: TensorHandle, dtype: Any) -> TensorHandle:
    """Replace the interpreter's conversion to bfloat16, which cuts bits off instead of rounding as a GPU does."""
    bits = torch.from_numpy(np.ascontiguousarray(numbers.data)).bfloat16().view(torch.int16)
    return TensorHandle(bits.numpy().view(np.uint16), dtype.scalar)
