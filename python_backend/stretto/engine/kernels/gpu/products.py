"""Products with a constant weight on a GPU, whose results are float32 whatever the weight's type.

Guidance multiplies the difference of two logits by up to 5: what bfloat16 has rounded away of them would be heard.
cuBLAS adds up in float32 in any case, so nothing is computed that was not before.

With VLLM_BATCH_INVARIANT vLLM puts products that do not depend on the batch in the place of torch's, but none whose
result is of another type: there a small weight is copied as float32, and the product of a large one is rounded.
"""

import torch
import torch.nn.functional as F
from vllm import envs

ALIGNED, MAX_COPIED = 8, 1 << 16


class Float32Product:
    """`x @ weight.T` in float32 for a `weight` [N, H] that stays as it is: x [M, H] of its type -> [M, N].

    cuBLAS is fast where rows are multiples of 16 bytes: rows of zeros fill a small weight up to a multiple of 8 rows,
    and the result is a view of what is counted.
    """

    def __init__(self, weight: torch.Tensor):
        self.num_columns = len(weight)
        num_missing = -self.num_columns % ALIGNED if self.num_columns <= MAX_COPIED else 0
        self.weight = F.pad(weight, (0, 0, 0, num_missing)) if num_missing else weight
        self._is_mixed = weight.dtype != torch.float32 and not envs.VLLM_BATCH_INVARIANT
        if envs.VLLM_BATCH_INVARIANT and self.num_columns <= MAX_COPIED:
            self.weight = self.weight.float()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The product."""
        if self._is_mixed:
            product = torch.mm(x, self.weight.t(), out_dtype=torch.float32)
        else:
            product = F.linear(x.to(self.weight.dtype), self.weight).float()
        return product[:, : self.num_columns]
