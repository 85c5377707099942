"""The capture of a CUDA graph that leaves all as it was when it fails."""

from collections.abc import Callable
from typing import Any

import torch


def record(work: Callable[[], object], pool: Any) -> torch.cuda.CUDAGraph:
    """The launches of `work`, none of them made, in the memory of `pool`; raises what `work` raises.

    A capture that fails leaves the stream of the capture current, and its launches unknown: the stream that was
    current before is again, and what was launched on the other has ended.
    """
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        # Other threads, which wait for outputs and decode, may call CUDA while this one records.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            work()
    except BaseException:
        torch.cuda.set_stream(stream)
        torch.cuda.synchronize()
        raise
    return graph
