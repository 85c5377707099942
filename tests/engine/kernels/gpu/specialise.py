"""Count the draw's binaries on a GPU for batches of 1 to 9 rows; one is compiled before serving."""

from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import create_function_from_signature

from stretto.engine.kernels.gpu import draw as kernel
from stretto.engine.sampling.parameters import DrawParams

COLUMNS, STREAMS = 1025, 8


class Launches:
    """Fake kernel that records the properties by which Triton would choose a binary."""

    def __init__(self, function: Any):
        backend = make_backend(GPUTarget("cuda", 90, 32))
        self._bind = create_function_from_signature(function.signature, function.params, backend)
        self.chosen_by: set[str] = set()

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*args: Any, **options: Any) -> None:
            _, specialization, rest = self._bind(*args, **options)
            self.chosen_by.add(str((specialization, rest)))

        return launch


def num_binaries_of_the_draw() -> int:
    """Return the number of binaries of the draw kernel, which is replaced and launches nothing afterwards."""
    launches = kernel._draw_kernel = Launches(kernel._draw_kernel)
    token_ids = torch.arange(STREAMS * COLUMNS).view(STREAMS, COLUMNS)
    for num_rows in range(1, 10):
        scales, limits = torch.zeros(6, num_rows), torch.zeros(11, num_rows, dtype=torch.int64)
        for row in range(3):  # as `PlanArrays` has them: rows of one table
            params = DrawParams(scales[row], limits[5 + row], scales[row + 1])
            keys = torch.zeros(num_rows, STREAMS + 1, dtype=torch.int32)[:, 1:]
            kernel.draw_on_device(torch.zeros(num_rows, STREAMS, COLUMNS), token_ids, keys, params)
    return len(launches.chosen_by)
