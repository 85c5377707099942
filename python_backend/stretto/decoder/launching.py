"""Execution of a batch: synchronously on the host, or on a GPU stream while the host goes on."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from stretto.codec.base import Codec, Window
from stretto.config import DecoderConfig
from stretto.decoder.graphs import CudaGraphs, GraphCache

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
    """Launcher on a CUDA stream of its own, concurrent with other work on the GPU and with the host.

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
