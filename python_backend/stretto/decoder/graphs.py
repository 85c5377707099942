"""CUDA graphs of recurring window shapes: one launch instead of hundreds of small ones."""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from stretto.codec.base import Window
from stretto.cuda_graphs import record

logger = logging.getLogger(__name__)
Decode = Callable[[Window], tuple[Tensor, Tensor]]
Key = tuple[int, int, int, int]  # left, frames in all, right, batch
WORTH_CAPTURING = 8  # number of uses after which a shape is captured
MAX_GRAPHS = 96  # half of them are captured at start-up (see `warming`), the others on demand


class GraphBackend(Protocol):
    """Recorder of the device operations of a function."""

    def capture(self, step: Callable[[], tuple[Tensor, Tensor]]) -> tuple[tuple[Tensor, Tensor], Callable[[], None]]:
        """Return the tensors that `step` returns, and a function that recomputes them in place."""
        ...


class CudaGraphs:
    """CUDA graphs on the current device with one memory pool, so only one may run at a time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def capture(self, step: Callable[[], tuple[Tensor, Tensor]]) -> tuple[tuple[Tensor, Tensor], Callable[[], None]]:
        """Capture `step`; if this raises, the previous stream is current again and no capture is active."""
        for _ in range(3):  # libraries choose algorithms and allocate workspaces at first use
            step()
        torch.cuda.synchronize()
        outputs = list[tuple[Tensor, Tensor]]()
        graph = record(lambda: outputs.append(step()), self._pool)
        return outputs[0], graph.replay


@dataclass(frozen=True, slots=True)
class Captured:
    """CUDA graph with its input window and output tensors."""

    window: Window
    pcm: Tensor
    states: Tensor
    replay: Callable[[], None]


class GraphCache:
    """Window decoder that uses CUDA graphs, keyed by window shape and batch size rounded up to a power of two."""

    def __init__(self, decode: Decode, backend: GraphBackend, max_graphs: int = MAX_GRAPHS) -> None:
        self._decode = decode
        self._backend = backend
        self._max_graphs = max_graphs
        self._uses: Counter[Key] = Counter()
        self._graphs: dict[Key, Captured] = {}
        self._has_failed = False

    @property
    def num_graphs(self) -> int:
        """Number of captured shapes."""
        return len(self._graphs)

    def capture(self, window: Window) -> bool:
        """Capture the shape of `window` in advance; return True if a graph exists now."""
        key = _key(window)
        return key in self._graphs or self._capture(key, window) is not None

    def decode(self, window: Window) -> tuple[Tensor, Tensor]:
        """Decode as `Codec.decode`, into newly allocated memory."""
        batch, key = len(window.codes), _key(window)
        captured = self._graphs.get(key) or self._consider(key, window)
        if captured is None:
            return self._decode(window)
        _fill(captured.window, window)
        captured.replay()
        return captured.pcm[:batch].clone(), captured.states[:batch].clone()

    def _consider(self, key: Key, window: Window) -> Captured | None:
        """Capture a shape once it has been used often enough."""
        self._uses[key] += 1
        return self._capture(key, window) if self._uses[key] >= WORTH_CAPTURING else None

    def _capture(self, key: Key, window: Window) -> Captured | None:
        if self._has_failed or len(self._graphs) >= self._max_graphs:
            return None
        still = _blank(window, key[3])
        _fill(still, window)
        try:
            (pcm, states), replay = self._backend.capture(lambda: self._decode(still))
        except RuntimeError:  # of any kind, as in `stretto.cuda_graphs`
            logger.warning("decoding goes on without graphs: %s cannot be captured", key, exc_info=True)
            self._has_failed = True
            self._graphs.clear()
            return None
        self._graphs[key] = Captured(still, pcm, states, replay)
        return self._graphs[key]


def _key(window: Window) -> Key:
    batch, _, length = window.codes.shape
    return window.left, length, window.right, 1 << (batch - 1).bit_length()


def _blank(window: Window, batch: int) -> Window:
    """Return a window of `batch` rows of zeros, shaped like `window`, in memory of its own."""
    codes, first, state = (
        torch.zeros((batch, *each.shape[1:]), dtype=each.dtype, device=each.device)
        for each in (window.codes, window.first, window.state)
    )
    return Window(codes, window.left, window.right, first, state)


def _fill(still: Window, window: Window) -> None:
    """Copy the rows of `window` into the first rows of `still`; further rows are unused."""
    batch = len(window.codes)
    still.codes[:batch].copy_(window.codes, non_blocking=True)
    still.first[:batch].copy_(window.first, non_blocking=True)
    still.state[:batch].copy_(window.state, non_blocking=True)
