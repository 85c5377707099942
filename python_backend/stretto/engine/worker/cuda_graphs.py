"""CUDA graphs of steps, in memory of their own."""

from collections.abc import Callable

import torch


class CudaRecorder:
    """Records launches on the stream that is current; the graphs are replayed one at a time, so they share memory."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def is_busy(self) -> bool:
        """Whether vLLM captures a graph of its own just now."""
        return torch.cuda.is_current_stream_capturing()

    def record(self, work: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """The launches of `work`.

        A capture that fails leaves the stream of the capture current, and its launches unknown: the stream that was
        current before is again, and what was launched on the other has ended.
        """
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            # Other threads, which wait for outputs and decode, may call CUDA while this one records.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                work()
        except RuntimeError:
            torch.cuda.set_stream(stream)
            torch.cuda.synchronize()
            raise
        return graph
