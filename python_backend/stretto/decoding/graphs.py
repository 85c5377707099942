"""Window decoder that replays CUDA graphs for usual shapes, all of which are captured before the first request.

All graphs read and write codec states in rows of one table, and write samples to one buffer, because only one runs at a
time.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from stretto.codecs.base import CodecSpec, Window
from stretto.decoding.states import Decode
from stretto.machine.cuda_graphs import record

logger = logging.getLogger(__name__)
Key = tuple[int, int, int, int]  # left, total number of frames, right, batch
# Audio per batch in seconds, including context. A longer batch would not be faster on any GPU, but needs more memory
# and delays first chunks: 16 s take about 1 TFLOP.
MAX_BATCH_S = 16.0
FIRST_BATCH_S = 2.0  # the same for a batch of first chunks, which should be short
FIRST_SHARE = 4  # windows of another batch for each window of a batch of first chunks, whose buffers are small


def padded_batch(num_windows: int) -> int:
    """Return the number of windows that a graph computes for a batch: the next power of two."""
    return 1 << (num_windows - 1).bit_length()


def limits_of(max_batch: int, is_first: bool) -> tuple[int, float]:
    """Return the maximum number of windows and of seconds of audio in a batch, of first chunks if `is_first`."""
    return (max(1, max_batch // FIRST_SHARE), FIRST_BATCH_S) if is_first else (max_batch, MAX_BATCH_S)


def batch_limit(spec: CodecSpec, num_frames: int, max_batch: int, longest_s: float = MAX_BATCH_S) -> int:
    """Return the maximum number of windows per batch.

    A codec that decodes whole utterances gets one at a time, because short ones would wait for longer ones. Otherwise
    a batch has at most `max_batch` windows and `longest_s` of audio, but at least one window.

    Args:
        num_frames: Number of frames in each window, including context.
    """
    if spec.max_frames is not None:
        return 1
    num_windows = max(1, int(longest_s * spec.frame_rate / num_frames))
    return min(max_batch, 1 << num_windows.bit_length() - 1)  # graphs are captured for powers of two


class GraphBackend(Protocol):
    """Recorder of a function's device operations, so that they can be replayed."""

    def prepare(self, step: Callable[[], None]) -> None:
        """Run `step` until its libraries have allocated their workspaces."""
        ...

    def capture(self, step: Callable[[], None]) -> Callable[[], None]:
        """Record the device operations of `step`, and return a function that repeats them."""
        ...

    def release(self) -> None:
        """Free memory that no graph and no tensor uses, after all work on the device has ended."""
        ...


class CudaGraphs:
    """CUDA graphs of one stream; they share memory, so only one may run at a time.

    Args:
        stream: Stream on which graphs are captured, whose priority their kernels keep.
    """

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = stream

    def prepare(self, step: Callable[[], None]) -> None:
        """Run `step` three times, because libraries choose algorithms and allocate workspaces at first use."""
        for _ in range(3):
            step()
        torch.cuda.synchronize()

    def capture(self, step: Callable[[], None]) -> Callable[[], None]:
        """Capture `step`; if this raises, the current stream is restored and no capture is active."""
        return record(step, self._pool, self._stream).replay

    def release(self) -> None:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


@dataclass(frozen=True, slots=True)
class Captured:
    """CUDA graph with the memory of its inputs, and of its samples, which all graphs share."""

    window: Window
    pcm: Tensor
    replay: Callable[[], None]


class GraphCache:
    """Window decoder that replays CUDA graphs for the shapes that have been captured.

    Graphs are keyed by the window's shape and the batch size, rounded up to a power of two. Batches beyond
    `batch_limit` are not captured. Other shapes are decoded without a graph; none is captured while requests are
    served, because a capture stops all of them for 0.1 s.

    All windows have the same table of states, and `Window.rows` for a batch that is padded to `padded_batch`.
    """

    def __init__(
        self,
        decode: Decode,
        backend: GraphBackend,
        spec: CodecSpec,
        max_batch: int,
        longest_s: float = MAX_BATCH_S,
    ) -> None:
        self._decode = decode
        self._backend = backend
        self._spec = spec
        self._longest_s = longest_s
        self._max_rows = padded_batch(max_batch)
        self._graphs: dict[Key, Captured] = {}
        self._pcm: Tensor | None = None  # samples of any batch
        self._is_closed = False  # nothing is captured any more

    @property
    def num_graphs(self) -> int:
        return len(self._graphs)

    def capture(self, window: Window) -> bool:
        """Capture a graph for the shape of `window`; return True if one exists afterwards."""
        key = _key(window)
        return key in self._graphs or self._capture(key, window) is not None

    def decode(self, window: Window) -> tuple[Tensor, Tensor]:
        """Decode a window as `Codec.decode` does.

        The samples are in newly allocated memory. If there is no memory for the window, unused memory of earlier
        windows is freed. If that is not enough, all graphs are dropped, because they keep as much as cuDNN's workspaces
        may have when they are captured.
        """
        for free in (self._backend.release, self._drop_graphs):
            try:
                return self._decode_or_replay(window)
            except torch.OutOfMemoryError:
                if not self._graphs:
                    raise
            free()
        return self._decode(window)

    def _drop_graphs(self) -> None:
        """Free the memory of all graphs; none is captured again."""
        logger.warning("no memory beside %d CUDA graphs: decoding without them", self.num_graphs)
        self._is_closed = True
        self._graphs.clear()
        self._backend.release()

    def _decode_or_replay(self, window: Window) -> tuple[Tensor, Tensor]:
        batch = len(window.codes)
        captured = self._graphs.get(_key(window))
        if captured is None:
            return self._decode(window)
        _fill(captured.window, window)
        captured.replay()
        return captured.pcm[:batch].clone(), window.state

    def _capture(self, key: Key, window: Window) -> Captured | None:
        """Capture a graph, or return None.

        If memory runs out before the capture begins, the graphs captured so far are kept. A capture that fails makes
        all of them unusable.
        """
        _, num_frames, _, batch = key
        limit = batch_limit(self._spec, num_frames, self._max_rows, self._longest_s)
        if self._is_closed or batch > limit:
            return None
        try:
            still = _still(window, batch)
            _fill(still, window)
            outputs = list[Tensor]()

            def step() -> None:
                outputs.append(self._stored(self._decode(still)[0]))

            self._backend.prepare(step)
        except torch.OutOfMemoryError:
            logger.warning("no memory for a CUDA graph of %s: capturing ends with %d", key, self.num_graphs)
            self._is_closed = True
            return None
        try:
            replay = self._backend.capture(step)
        except RuntimeError:  # any error, as in `stretto.machine.cuda_graphs`
            logger.warning("decoding without CUDA graphs: cannot capture %s", key, exc_info=True)
            self._is_closed = True
            self._graphs.clear()
            return None
        self._graphs[key] = Captured(still, outputs[-1], replay)
        return self._graphs[key]

    def _stored(self, pcm: Tensor) -> Tensor:
        """Copy the samples of a graph to the memory for samples, and return them there."""
        if self._pcm is None:
            self._pcm = pcm.new_empty(int(self._longest_s * self._spec.sample_rate))
        return self._pcm[: pcm.numel()].view(pcm.shape).copy_(pcm)


def _key(window: Window) -> Key:
    batch, _, length = window.codes.shape
    return window.left, length, window.right, padded_batch(batch)


def _still(window: Window, batch: int) -> Window:
    """Return a copy of `window` for `batch` utterances, in the memory from which a graph reads its input."""
    assert window.rows is not None
    codes = window.codes.new_zeros(batch, *window.codes.shape[1:])
    first = window.first.new_zeros(batch)
    return Window(codes, window.left, window.right, first, window.state, window.rows.new_zeros(2, batch))


def _fill(still: Window, window: Window) -> None:
    """Copy `window` to a graph's input `still`; if its batch is smaller, the last windows keep earlier codes."""
    assert still.rows is not None
    assert window.rows is not None
    batch = len(window.codes)
    still.codes[:batch].copy_(window.codes, non_blocking=True)
    still.first[:batch].copy_(window.first, non_blocking=True)
    still.rows.copy_(window.rows, non_blocking=True)
