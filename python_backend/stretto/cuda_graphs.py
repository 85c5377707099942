"""CUDA graph capture that restores the previous state on failure.

Rule for all users: after a failed capture all graphs of its pool are dropped and no other is captured. They share the
memory of the failed capture, and earlier captures may have failed unnoticed. Work is then launched directly, which is
slower and correct.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch


def record(work: Callable[[], object], pool: Any) -> torch.cuda.CUDAGraph:
    """Return the launches of `work` as a graph in the memory of `pool`, without running them.

    Errors of `work` are raised. A failed capture would leave its stream current, its launches pending and the allocator
    in capture mode; all three are undone.
    """
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        # Thread-local capture mode, because other threads may call CUDA meanwhile.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            work()
    except BaseException:
        torch.cuda.set_stream(stream)
        torch.cuda.synchronize()
        _stop_allocating(pool)
        raise
    return graph


def _stop_allocating(pool: Any) -> None:
    """Do what torch's `capture_end` omits if CUDA refuses to end the capture (ATen/cuda/CUDAGraph.cpp).

    While the allocator is in capture mode, memory used by other streams is not reused.
    """
    with suppress(RuntimeError):  # the capture had ended; only the work failed
        torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
