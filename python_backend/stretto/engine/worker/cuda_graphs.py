"""CUDA graphs of steps, in memory of their own."""

from collections.abc import Callable

import torch
from vllm.config import CUDAGraphMode, VllmConfig

from stretto.cuda_graphs import record


class CudaRecorder:
    """Records launches on the stream that is current; the graphs are replayed one at a time, so they share memory."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def is_busy(self) -> bool:
        """Whether vLLM captures a graph of its own just now."""
        return torch.cuda.is_current_stream_capturing()

    def record(self, work: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """The launches of `work`."""
        return record(work, self._pool)


def recorder_of(device: torch.device, config: VllmConfig) -> CudaRecorder | None:
    """What records launches on `device`; None where there is nothing that could, or graphs are not wanted."""
    wanted = config.compilation_config.cudagraph_mode is not CUDAGraphMode.NONE
    return CudaRecorder() if wanted and device.type == "cuda" else None
