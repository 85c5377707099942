"""GPU products with a constant weight and float32 results.

Guidance multiplies the difference of two logits by up to 5, so bfloat16 rounding would be audible. cuBLAS accumulates
in float32 anyway, so float32 results cost nothing extra.

With VLLM_BATCH_INVARIANT vLLM replaces torch's products by batch-invariant ones, which cannot return another type. In
that case a small weight is copied to float32, and the product of a large one is rounded.
"""

import torch
import torch.nn.functional as F
from vllm import envs

ALIGNED, MAX_COPIED = 8, 1 << 16


class Float32Product:
    """Product `x @ weight.T` in float32 with a constant `weight` [N, H]: x [M, H] -> [M, N].

    cuBLAS is fast if rows are multiples of 16 bytes. A small weight is therefore padded with zeros to a multiple of 8
    rows, and the result is a view without the padding.
    """

    def __init__(self, weight: torch.Tensor):
        self.num_columns = len(weight)
        num_missing = -self.num_columns % ALIGNED if self.num_columns <= MAX_COPIED else 0
        self.weight = F.pad(weight, (0, 0, 0, num_missing)) if num_missing else weight
        self._is_mixed = weight.dtype != torch.float32 and not envs.VLLM_BATCH_INVARIANT
        if envs.VLLM_BATCH_INVARIANT and self.num_columns <= MAX_COPIED:
            self.weight = self.weight.float()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return the product."""
        if self._is_mixed:
            product = torch.mm(x, self.weight.t(), out_dtype=torch.float32)
        else:
            product = F.linear(x.to(self.weight.dtype), self.weight).float()
        return product[:, : self.num_columns]
