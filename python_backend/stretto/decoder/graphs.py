"""CUDA graphs of the window shapes that come again and again: one launch instead of hundreds of small ones."""

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
WORTH_CAPTURING = 8  # uses of a shape after which it is captured
MAX_GRAPHS = 96  # half of them captured at the start (see `warming`), the others as shapes come


class GraphBackend(Protocol):
    """Records what a function does on the device."""

    def capture(self, step: Callable[[], tuple[Tensor, Tensor]]) -> tuple[tuple[Tensor, Tensor], Callable[[], None]]:
        """The tensors that `step` returns, and a function that does what it did again, into the same tensors."""
        ...


class CudaGraphs:
    """Graphs on the current device, which share one pool of memory: only one of them runs at a time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def capture(self, step: Callable[[], tuple[Tensor, Tensor]]) -> tuple[tuple[Tensor, Tensor], Callable[[], None]]:
        """See GraphBackend. When it raises, the current stream is that of before, and nothing is under way."""
        for _ in range(3):  # libraries choose their algorithms and allocate their workspaces at first use
            step()
        torch.cuda.synchronize()
        outputs = list[tuple[Tensor, Tensor]]()
        graph = record(lambda: outputs.append(step()), self._pool)
        return outputs[0], graph.replay


@dataclass(frozen=True, slots=True)
class Captured:
    """A graph, the window that it reads and the tensors that it writes."""

    window: Window
    pcm: Tensor
    states: Tensor
    replay: Callable[[], None]


class GraphCache:
    """Decodes windows, from graphs where there is one. A shape is that of the window and a power of two of rows."""

    def __init__(self, decode: Decode, backend: GraphBackend, max_graphs: int = MAX_GRAPHS) -> None:
        self._decode = decode
        self._backend = backend
        self._max_graphs = max_graphs
        self._uses: Counter[Key] = Counter()
        self._graphs: dict[Key, Captured] = {}
        self._has_failed = False

    @property
    def num_graphs(self) -> int:
        """Shapes that are decoded from a graph."""
        return len(self._graphs)

    def capture(self, window: Window) -> bool:
        """Capture the shape of a window before it comes; whether there is a graph of it now."""
        key = _key(window)
        return key in self._graphs or self._capture(key, window) is not None

    def decode(self, window: Window) -> tuple[Tensor, Tensor]:
        """As `Codec.decode`, into memory of its own."""
        batch, key = len(window.codes), _key(window)
        captured = self._graphs.get(key) or self._consider(key, window)
        if captured is None:
            return self._decode(window)
        _fill(captured.window, window)
        captured.replay()
        return captured.pcm[:batch].clone(), captured.states[:batch].clone()

    def _consider(self, key: Key, window: Window) -> Captured | None:
        """Capture a shape that has been seen often enough."""
        self._uses[key] += 1
        return self._capture(key, window) if self._uses[key] >= WORTH_CAPTURING else None

    def _capture(self, key: Key, window: Window) -> Captured | None:
        if self._has_failed or len(self._graphs) >= self._max_graphs:
            return None
        still = _blank(window, key[3])
        _fill(still, window)
        try:
            (pcm, states), replay = self._backend.capture(lambda: self._decode(still))
        except RuntimeError:  # of any kind; the rule is that of `stretto.cuda_graphs`
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
    """A window of `batch` rows of zeros, shaped like `window`, in memory of its own."""
    codes, first, state = (
        torch.zeros((batch, *each.shape[1:]), dtype=each.dtype, device=each.device)
        for each in (window.codes, window.first, window.state)
    )
    return Window(codes, window.left, window.right, first, state)


def _fill(still: Window, window: Window) -> None:
    """Write a window's rows into the first rows of `still`; the others are nobody's."""
    batch = len(window.codes)
    still.codes[:batch].copy_(window.codes, non_blocking=True)
    still.first[:batch].copy_(window.first, non_blocking=True)
    still.state[:batch].copy_(window.state, non_blocking=True)
