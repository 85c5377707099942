"""CUDA graphs of steps, in a memory pool of their own."""

from collections.abc import Callable

import torch
from vllm.config import CUDAGraphMode, VllmConfig

from stretto.cuda_graphs import record


class CudaRecorder:
    """Recorder of launches on the current stream; graphs share memory because they never run concurrently."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def is_busy(self) -> bool:
        """Return True while vLLM captures a graph of its own."""
        return torch.cuda.is_current_stream_capturing()

    def record(self, work: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """Return the launches of `work` as a graph."""
        return record(work, self._pool)


def recorder_of(device: torch.device, config: VllmConfig) -> CudaRecorder | None:
    """Return the recorder for `device`, or None if it has no CUDA graphs or they are disabled."""
    wanted = config.compilation_config.cudagraph_mode is not CUDAGraphMode.NONE
    return CudaRecorder() if wanted and device.type == "cuda" else None
