"""CUDA graph capture that restores the previous state on failure.

After a failed capture, the caller must drop all graphs in that memory pool and must not capture any more. The graphs
share memory with the failed capture, and earlier captures may have failed unnoticed. Kernels are then launched
directly, which is slower but correct.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch


def record(work: Callable[[], object], pool: Any, stream: torch.cuda.Stream | None = None) -> torch.cuda.CUDAGraph:
    """Capture the kernel launches of `work` as a CUDA graph, without executing them.

    A failed capture would leave its stream current, its launches pending and the allocator in capture mode. All three
    are undone before the error is raised.

    Args:
        pool: Memory pool of the graph, from `torch.cuda.graph_pool_handle`.
        stream: Stream on which the graph is captured; None for torch's own.
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
    """End the allocator's capture mode, which torch's `capture_end` does not do if CUDA fails.

    In capture mode, the allocator does not reuse memory that other streams have used. `capture_end` is in
    ATen/cuda/CUDAGraph.cpp.
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
        """Record the launches of `work` as a CUDA graph."""
        return record(work, self._pool)
