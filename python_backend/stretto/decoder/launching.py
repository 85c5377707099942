"""Execution of a batch: on the host, on a GPU stream, or by replay of a CUDA graph."""

import logging
import os
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from stretto.codecs.base import Codec, Window
from stretto.config import DecoderConfig
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
            logger.warning("decoding without CUDA graphs: cannot capture %s", key, exc_info=True)
            self._has_failed = True
            self._graphs.clear()
            return None
        self._graphs[key] = Captured(still, pcm, states, replay)
        return self._graphs[key]


def _key(window: Window) -> Key:
    batch, _, length = window.codes.shape
    return window.left, length, window.right, 1 << (batch - 1).bit_length()


def _blank(window: Window, batch: int) -> Window:
    """Return a window of `batch` rows of zeros, shaped like `window`, in separate memory."""
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


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PRIMITIVES = 1 << 14  # oneDNN primitives to cache, about 100 kB each


@dataclass(frozen=True, slots=True)
class Flight:
    """Batch that has been launched.

    Attributes:
        states: Codec states after the batch, [B, D].
        pcm: Function that waits for, and returns, the samples [B, n].
        on_device: The samples on the device; None if decoded on the host.
        device_s: Function that returns the device time in seconds once the samples are there; None if decoded on the
            host.
    """

    states: Tensor
    pcm: Callable[[], np.ndarray]
    on_device: Tensor | None = None
    device_s: Callable[[], float] | None = None


class Launcher(Protocol):
    """Executor that decodes batches in launch order.

    Attributes:
        depth: Number of batches that may be in flight.
        has_graphs: True if shapes can be captured.
    """

    depth: int
    has_graphs: bool

    def enter(self) -> None:
        """Prepare the launching thread; called once, before it creates the first codec state."""
        ...

    def capture(self, window: Window) -> bool:
        """Capture a graph of the window's shape in advance; return True if one exists now."""
        ...

    def launch(self, window: Window) -> Flight:
        """Start decoding a window; codes and first frames are on the host, states where they were left."""
        ...


class HostLauncher:
    """Launcher that decodes synchronously on the host."""

    depth = 0
    has_graphs = False

    def __init__(self, codec: Codec, dtype: str) -> None:
        self._codec = codec
        self._precision = precision("cpu", dtype)

    def enter(self) -> None:
        """Enlarge oneDNN's primitive cache, which is read when the first primitive is created.

        Chunks have 96 shapes with some 60 convolutions each. The default of 1024 entries evicts them, and every shape
        would be slow again whenever it recurs.
        """
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(PRIMITIVES))

    def capture(self, window: Window) -> bool:
        """Return False: the host has no graphs."""
        return False

    def launch(self, window: Window) -> Flight:
        with self._precision():
            pcm, states = self._codec.decode(window)
        samples = pcm.float().cpu().numpy()
        return Flight(states, lambda: samples)


class CudaLauncher:
    """Launcher on a separate CUDA stream, concurrent with other work on the GPU and with the host.

    All transfers use pinned memory. The host waits for one copy per batch and never for the whole device.
    """

    depth = 1

    def __init__(self, codec: Codec, config: DecoderConfig) -> None:
        self._device = torch.device(config.device)
        # TF32 rounds to 10 bits; windows would no longer join within 1e-5.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        self._stream = torch.cuda.Stream(self._device)
        within = precision("cuda", config.dtype)

        def decode(window: Window) -> tuple[Tensor, Tensor]:
            with within():
                return codec.decode(window)

        self.has_graphs = config.graphs and codec.spec.max_frames is None  # whole utterances rarely have equal shapes
        self._graphs = GraphCache(decode, CudaGraphs()) if self.has_graphs else None
        self._decode = decode if self._graphs is None else self._graphs.decode

    def enter(self) -> None:
        """Make our stream the thread's current one.

        States created or combined between launches are then ordered with the decoding, and their memory is not reused
        too early.
        """
        torch.cuda.synchronize(self._device)  # the weights were loaded on another stream
        torch.cuda.set_stream(self._stream)

    def capture(self, window: Window) -> bool:
        """Capture a graph of the window's shape; return True if one exists now."""
        with torch.cuda.stream(self._stream), torch.inference_mode():
            return self._graphs is not None and self._graphs.capture(self._sent(_pinned(window)))

    def launch(self, window: Window) -> Flight:
        window = _pinned(window)
        with torch.cuda.stream(self._stream), torch.inference_mode():
            begun, done = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begun.record()  # recorded once the device has finished the previous batch
            pcm, states = self._decode(self._sent(window))
            pcm = pcm.float().contiguous()
            samples = torch.empty(pcm.shape, dtype=torch.float32, pin_memory=True)
            samples.copy_(pcm, non_blocking=True)
            done.record()

        def collect() -> np.ndarray:
            done.synchronize()
            return samples.numpy().copy()  # the pinned memory returns to its pool

        return Flight(states, collect, pcm, lambda: begun.elapsed_time(done) / 1e3)

    def _sent(self, window: Window) -> Window:
        """Return the window with codes and first frames being copied to the device."""
        codes, first = (each.to(self._device, non_blocking=True) for each in (window.codes, window.first))
        return replace(window, codes=codes, first=first)


def _pinned(window: Window) -> Window:
    return replace(window, codes=window.codes.pin_memory(), first=window.first.pin_memory())


def precision(device_type: str, dtype: str) -> Callable[[], AbstractContextManager[object]]:
    """Return a context factory in which float32 products and convolutions run in `dtype`; float64 is unaffected."""
    if dtype == "float32":
        return nullcontext
    return lambda: torch.autocast(device_type, DTYPES[dtype], cache_enabled=False)


def make_launcher(codec: Codec, config: DecoderConfig) -> Launcher:
    """Return the launcher for the device in `config`; onnxruntime always takes host tensors."""
    if torch.device(config.device).type == "cuda" and config.runtime == "torch":
        return CudaLauncher(codec, config)
    return HostLauncher(codec, config.dtype)
