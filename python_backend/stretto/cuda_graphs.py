"""The capture of a CUDA graph that leaves all as it was when it fails.

One rule for whoever keeps graphs: once a capture has failed, all graphs of its pool go and no other is captured. They
share the memory that it leaves behind, and what goes wrong once may have gone wrong before. A step or a window is then
launched as it is, which takes longer and is as right.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch


def record(work: Callable[[], object], pool: Any) -> torch.cuda.CUDAGraph:
    """The launches of `work`, none of them made, in the memory of `pool`; raises what `work` raises.

    A capture that fails leaves the stream of the capture current, its launches unknown, and the allocator at work for
    it: the stream that was current before is again, what was launched on the other has ended, and so has the capture.
    """
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        # Other threads, which wait for outputs and decode, may call CUDA while this one records.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            work()
    except BaseException:
        torch.cuda.set_stream(stream)
        torch.cuda.synchronize()
        _stop_allocating(pool)
        raise
    return graph


def _stop_allocating(pool: Any) -> None:
    """What torch's `capture_end` leaves undone when CUDA has refused to end the capture (ATen/cuda/CUDAGraph.cpp).

    While the allocator takes a capture for under way, memory that other streams have used is not given out again.
    """
    with suppress(RuntimeError):  # the capture was ended, and what failed was the work
        torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
