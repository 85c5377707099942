"""CUDA graphs of steps, one for each variant and padded number of rows."""

import logging
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, Protocol, TypeVar

import torch
from vllm.config import CUDAGraphMode, VllmConfig

from stretto.machine.cuda_graphs import CudaRecorder

LOGGER = logging.getLogger(__name__)
Work = Callable[[], None]
Kind = TypeVar("Kind", bound=Hashable)


class Graph(Protocol):
    """Recorded launches that can be repeated, such as a CUDA graph."""

    def replay(self) -> None:
        """Repeat the recorded launches."""


class Recorder(Protocol):
    """Recorder of kernel launches for later replay."""

    def is_busy(self) -> bool:
        """Return True if launches on this stream are already being recorded."""

    def record(self, work: Work) -> Graph:
        """Record the launches of `work` without running them. If `work` raises, the stream stays usable."""


def padded_sizes(max_rows: int) -> list[int]:
    """Return the captured sizes: 1, 2, 4, multiples of 8 below 256, then multiples of 16, and `max_rows`."""
    sizes = [1, 2, 4, *range(8, 256, 8), *range(256, max_rows, 16)]
    return [size for size in sizes if size < max_rows] + [max_rows]


class StepGraphs(Generic[Kind]):
    """Runner of steps: replays a step's graph if there is one, and otherwise launches its kernels directly."""

    def __init__(
        self,
        launch: Callable[[Kind, int], None],
        max_rows: int,
        recorder: Recorder | None,
        can_capture: Callable[[Kind, int], bool],
    ):
        self._launch = launch
        self._recorder = recorder
        self._can_capture = can_capture
        self._sizes = padded_sizes(max_rows)
        self._size_of = [min(size for size in self._sizes if size >= num_rows) for num_rows in range(max_rows + 1)]
        self._graphs: dict[tuple[Kind, int], Graph] = {}

    @property
    def num_graphs(self) -> int:
        return len(self._graphs)

    @property
    def sizes(self) -> list[int]:
        """Padded numbers of rows, the largest first."""
        return self._sizes[::-1]

    def padded(self, num_rows: int) -> int:
        """Return the padded size at which a step of `num_rows` rows is launched."""
        return self._size_of[num_rows]

    def run(self, variant: Kind, num_rows: int) -> None:
        """Run a step of `num_rows` rows at its padded size. The caller has made the padding rows inactive."""
        size = self.padded(num_rows)
        graph = self._graphs.get((variant, size))
        if graph is not None:
            graph.replay()
            return
        self._launch(variant, size)
        self._capture(variant, size)  # for later steps; recording does not run the step

    def capture(self, variants: Iterable[Kind], sizes: Iterable[int] | None = None) -> None:
        """Capture `variants` at `sizes` (default: all sizes, largest first).

        Smaller graphs reuse the memory of larger ones. Each step is launched once before it is captured, because
        loading and allocation on first use cannot be recorded. All rows must be inactive.
        """
        for variant in variants:
            for size in self.sizes if sizes is None else sizes:
                if self._recorder is not None and (variant, size) not in self._graphs:
                    self._launch(variant, size)
                    self._capture(variant, size)

    def _capture(self, variant: Kind, size: int) -> None:
        recorder = self._recorder
        if recorder is None or not self._can_capture(variant, size) or recorder.is_busy():
            return
        try:
            self._graphs[variant, size] = recorder.record(lambda: self._launch(variant, size))
        except RuntimeError as error:  # any failed capture, such as out of memory
            self._recorder = None
            self._graphs.clear()
            LOGGER.warning("steps of %d rows run without a CUDA graph, because capturing failed: %s", size, error)


def recorder_of(device: torch.device, config: VllmConfig) -> CudaRecorder | None:
    """Return a recorder for `device`, or None if CUDA graphs are unavailable or disabled in vLLM."""
    wanted = config.compilation_config.cudagraph_mode is not CUDAGraphMode.NONE
    return CudaRecorder() if wanted and device.type == "cuda" else None
