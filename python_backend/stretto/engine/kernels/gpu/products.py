"""Products with a constant weight on a GPU, whose results are float32 whatever the weight's type.

Guidance multiplies the difference of two logits by up to 5: what bfloat16 has rounded away of them would be heard.
cuBLAS adds up in float32 in any case, so nothing is computed that was not before.
"""

import torch
import torch.nn.functional as F

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

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The product."""
        if self.weight.dtype == torch.float32:
            product = F.linear(x, self.weight)
        else:
            product = torch.mm(x, self.weight.t(), out_dtype=torch.float32)
        return product[:, : self.num_columns]
