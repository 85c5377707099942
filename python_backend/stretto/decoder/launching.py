"""Where and how a codec decodes a batch: at once on the host, or on a stream of a GPU while the host goes on."""

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
PRIMITIVES = 1 << 14  # of oneDNN, each with some 100 kB of code and tables


@dataclass(frozen=True, slots=True)
class Flight:
    """A batch that has been launched.

    states [B, D]: as the next windows take them. pcm: waits, and gives [B, n]. on_device: the same samples where the
    device has them. device_s: what it took the device, once they are there. None of the two if `launch` has decoded.
    """

    states: Tensor
    pcm: Callable[[], np.ndarray]
    on_device: Tensor | None = None
    device_s: Callable[[], float] | None = None


class Launcher(Protocol):
    """Decodes batches in the order in which they are launched.

    depth: batches that may be in flight at once. has_graphs: whether shapes can be captured.
    """

    depth: int
    has_graphs: bool

    def enter(self) -> None:
        """Called once by the thread that launches, before it makes the first state of an utterance."""
        ...

    def capture(self, window: Window) -> bool:
        """Make a graph of a window's shape, for up to as many rows, before it comes; whether there is one now."""
        ...

    def launch(self, window: Window) -> Flight:
        """Start decoding a window whose codes and first frames lie on the host, its states where they were left."""
        ...


class HostLauncher:
    """Decodes within `launch`."""

    depth = 0
    has_graphs = False

    def __init__(self, codec: Codec, dtype: str) -> None:
        self._codec = codec
        self._precision = precision("cpu", dtype)

    def enter(self) -> None:
        """Let oneDNN keep what it prepares for all shapes that chunks have: some 60 convolutions in 96 shapes, where by
        default it keeps 1024. Without that a shape is slow each time it comes back. It asks when it prepares the first.
        """
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(PRIMITIVES))

    def capture(self, window: Window) -> bool:
        """See Launcher."""
        return False

    def launch(self, window: Window) -> Flight:
        with self._precision():
            pcm, states = self._codec.decode(window)
        samples = pcm.float().cpu().numpy()
        return Flight(states, lambda: samples)


class CudaLauncher:
    """Decodes on a stream of its own: beside what others do on that GPU, and while the host answers the batch before.

    Everything crosses in pinned memory; the host waits for one copy and never for the device.
    """

    depth = 1

    def __init__(self, codec: Codec, config: DecoderConfig) -> None:
        self._device = torch.device(config.device)
        # TF32 rounds to 10 bits: windows would no longer fit together at 1e-5.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        self._stream = torch.cuda.Stream(self._device)
        within = precision("cuda", config.dtype)

        def decode(window: Window) -> tuple[Tensor, Tensor]:
            with within():
                return codec.decode(window)

        self.has_graphs = config.graphs and codec.spec.max_frames is None  # whole utterances are hardly ever alike
        self._graphs = GraphCache(decode, CudaGraphs()) if self.has_graphs else None
        self._decode = decode if self._graphs is None else self._graphs.decode

    def enter(self) -> None:
        """From here on the thread's own stream is ours: states that it makes, cuts and puts together between launches
        follow one another and the decoding on the device, and their memory is not given to others too early."""
        torch.cuda.synchronize(self._device)  # the weights were loaded on another stream
        torch.cuda.set_stream(self._stream)

    def capture(self, window: Window) -> bool:
        """See Launcher."""
        with torch.cuda.stream(self._stream), torch.inference_mode():
            return self._graphs is not None and self._graphs.capture(self._sent(_pinned(window)))

    def launch(self, window: Window) -> Flight:
        window = _pinned(window)
        with torch.cuda.stream(self._stream), torch.inference_mode():
            begun, done = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begun.record()  # comes when the device is done with the batch before
            pcm, states = self._decode(self._sent(window))
            pcm = pcm.float().contiguous()
            samples = torch.empty(pcm.shape, dtype=torch.float32, pin_memory=True)
            samples.copy_(pcm, non_blocking=True)
            done.record()

        def collect() -> np.ndarray:
            done.synchronize()
            return samples.numpy().copy()  # the pinned memory goes back to its pool

        return Flight(states, collect, pcm, lambda: begun.elapsed_time(done) / 1e3)

    def _sent(self, window: Window) -> Window:
        """A window with its codes and first frames on their way to the device."""
        codes, first = (each.to(self._device, non_blocking=True) for each in (window.codes, window.first))
        return replace(window, codes=codes, first=first)


def _pinned(window: Window) -> Window:
    return replace(window, codes=window.codes.pin_memory(), first=window.first.pin_memory())


def precision(device_type: str, dtype: str) -> Callable[[], AbstractContextManager[object]]:
    """A context in which matrix products and convolutions of float32 run in `dtype`; float64 stays float64."""
    if dtype == "float32":
        return nullcontext
    return lambda: torch.autocast(device_type, DTYPES[dtype], cache_enabled=False)


def make_launcher(codec: Codec, config: DecoderConfig) -> Launcher:
    """The launcher for the device of `config`, where the codec's weights lie; onnxruntime takes the host's tensors."""
    if torch.device(config.device).type == "cuda" and config.runtime == "torch":
        return CudaLauncher(codec, config)
    return HostLauncher(codec, config.dtype)
