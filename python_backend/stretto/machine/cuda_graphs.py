"""CUDA graph capture that restores the previous state on failure.

After a failed capture, the caller must drop all graphs in that memory pool and must not capture any more. The graphs
share memory with the failed capture, and earlier captures may have failed unnoticed. Kernels are then launched
without graphs, which is slower.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch


def record(work: Callable[[], object], pool: Any, stream: torch.cuda.Stream | None = None) -> torch.cuda.CUDAGraph:
    """Capture the kernel launches of `work` as a CUDA graph, without executing them.

    The graph's memory is in `pool`, from `torch.cuda.graph_pool_handle`. A `stream` of None is torch's own.
    If the capture fails, torch would leave the stream current, its launches pending and the allocator in capture mode.
    This function resets all three.
    """
    graph = torch.cuda.CUDAGraph()
    current = torch.cuda.current_stream()
    try:
        # Thread-local capture mode, because other threads may call CUDA in the meantime.
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            work()
    except BaseException:
        torch.cuda.set_stream(current)
        torch.cuda.synchronize()
        _stop_allocating(pool)
        raise
    return graph


def _stop_allocating(pool: Any) -> None:
    """End the allocator's capture mode, in which it does not reuse memory that other streams have used.

    Torch's `capture_end` (ATen/cuda/CUDAGraph.cpp) does not end it if CUDA fails.
    """
    with suppress(RuntimeError):  # the capture had ended; only the work failed
        torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)


class CudaRecorder:
    """Records CUDA graphs on the current stream. The graphs never run concurrently, so they share memory."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def is_busy(self) -> bool:
        """Return True while vLLM is capturing one of its own graphs."""
        return torch.cuda.is_current_stream_capturing()

    def record(self, work: Callable[[], None]) -> torch.cuda.CUDAGraph:
        return record(work, self._pool)
