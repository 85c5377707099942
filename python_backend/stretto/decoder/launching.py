"""Runs batches on the host or on a CUDA stream, with CUDA graphs and a warm-up.

The decoder warms up before the first chunk, because the first window of each shape takes several times as long.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from stretto.codecs.base import Codec, CodecSpec, Window, use_whole_float32
from stretto.config import DecoderConfig
from stretto.decoder.streaming import FrameWindow, Windower
from stretto.decoding.convolutions import check_mode, convolutions_in
from stretto.decoding.graphs import CudaGraphs, Decode, GraphCache, batch_limit, limits_of
from stretto.streams.chunking import ChunkPolicy

PRIMITIVES = 1 << 14  # oneDNN primitives to cache, about 100 kB each


@dataclass(frozen=True, slots=True)
class Flight:
    """Batch that has been launched.

    Attributes:
        states: Codec state [1, D] of each utterance after the batch, each in memory of its own.
        pcm: Function that waits for the samples and returns them, float32 [B, n].
        on_device: The samples on the GPU; None on the host.
        device_s: Function that returns the device time in seconds, callable once the samples are available; None on the
            host.
        is_done: Function that returns True once `pcm` need not wait.
    """

    states: Sequence[Tensor]
    pcm: Callable[[], np.ndarray]
    on_device: Tensor | None = None
    device_s: Callable[[], float] | None = None
    is_done: Callable[[], bool] = lambda: True


class Launcher(Protocol):
    """Executor that decodes batches in launch order; those of first chunks may have an order of their own.

    Attributes:
        depth: Maximum number of batches in flight while another is being prepared.
        has_first_lane: True if batches of first chunks do not wait for others. At most one of them is in flight.
        has_graphs: True if graphs can be captured.
        batch_s: Time in seconds after which a batch gets no further window.
        fills_spare_time: True if a batch may last longer while every client has audio to play: half of that audio.
    """

    depth: int
    has_first_lane: bool
    has_graphs: bool
    batch_s: float
    fills_spare_time: bool

    def enter(self) -> None:
        """Prepare the calling thread, which will launch all batches. Call once, before any codec state is created."""
        ...

    def capture(self, window: Window, is_first: bool = False) -> bool:
        """Capture a graph for the shape of `window`; return True if one exists afterwards.

        Args:
            window: Batch of windows.
            is_first: True for a batch of first chunks.
        """
        ...

    def launch(self, windows: Sequence[FrameWindow], states: Sequence[Tensor], is_first: bool = False) -> Flight:
        """Start decoding a batch.

        Args:
            windows: Windows of equal shape.
            states: Codec state [1, D] before each window, on the codec's device. The caller keeps them until the batch
                is done, because they may have been written on another stream.
            is_first: True for a batch of first chunks.
        """
        ...


def stack(windows: Sequence[FrameWindow], states: Sequence[Tensor]) -> Window:
    """Stack windows of equal shape and the states before them into one batch for the codec."""
    return Window(
        codes=torch.from_numpy(np.stack([window.codes for window in windows])),
        left=windows[0].left,
        right=windows[0].right,
        first=torch.tensor([window.first for window in windows]),
        state=torch.cat(list(states)),
    )


def own_states(states: Tensor) -> list[Tensor]:
    """Return copies [1, D] of the rows of `states` [B, D]; views would keep the states of the whole batch alive."""
    return [state.clone() for state in states.split(1)]


class HostLauncher:
    """Launcher that decodes synchronously on the host.

    Args:
        codec: The codec.
        convolutions: One of `DecoderConfig.CONVOLUTIONS`; results are rounded as on a GPU.
    """

    depth = 0
    has_first_lane = False
    has_graphs = False
    batch_s = 0.1
    fills_spare_time = False

    def __init__(self, codec: Codec, convolutions: str) -> None:
        self._codec = codec
        self._convolutions = convolutions_in(convolutions)

    def enter(self) -> None:
        """Enlarge oneDNN's primitive cache, whose capacity is read when the first primitive is created.

        Chunks have 96 shapes with about 60 convolutions each. With the default capacity of 1024, a shape would be
        evicted, and slow again whenever it recurs.
        """
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(PRIMITIVES))

    def capture(self, window: Window, is_first: bool = False) -> bool:
        """Return False, because the host has no graphs."""
        return False

    def launch(self, windows: Sequence[FrameWindow], states: Sequence[Tensor], is_first: bool = False) -> Flight:
        with self._convolutions:
            pcm, after = self._codec.decode(stack(windows, states))
        samples = pcm.float().cpu().numpy()
        return Flight(own_states(after), lambda: samples)


class Lane:
    """CUDA stream of the decoder, and the graphs that are replayed on it, with buffers of their own.

    Args:
        decode: Function that decodes a window without a graph.
        codec: The codec.
        config: Decoder configuration.
        is_first: True if the lane is for first chunks, whose kernels come first.

    Attributes:
        stream: The stream.
        decode: Function that decodes a window, with a graph if its shape has one.
        graphs: The graphs; None if the codec or the configuration has none.
    """

    def __init__(self, decode: Decode, codec: Codec, config: DecoderConfig, is_first: bool = False) -> None:
        self.stream = torch.cuda.Stream(torch.device(config.device), priority=-1 if is_first else 0)
        self.decode = decode
        self.graphs: GraphCache | None = None
        if config.graphs and codec.spec.can_capture:
            limits = limits_of(config.max_batch, is_first)
            self.graphs = GraphCache(decode, CudaGraphs(self.stream), codec.spec, *limits)
            self.decode = self.graphs.decode


class CudaLauncher:
    """Launcher with CUDA streams of its own, which run concurrently with the host and other GPU work.

    A codec with graphs has two: first chunks are decoded on a stream of higher priority. An utterance's next window is
    launched only after the host has seen the end of its last one, so streams never wait for each other.

    All transfers use pinned memory. The host waits for one copy per batch and never synchronises the whole device.
    """

    depth = 1  # the host answers a batch while the next one is computed
    batch_s = 0.012  # about twice the time of a single window, for which a first chunk waits
    fills_spare_time = True

    def __init__(self, codec: Codec, config: DecoderConfig) -> None:
        self._device = torch.device(config.device)
        use_whole_float32()
        if config.memory_mb:  # otherwise cuDNN may choose an algorithm with a workspace of 20 GB, as on an H100
            total = torch.cuda.get_device_properties(self._device).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, (config.memory_mb << 20) / total), self._device.index)
        convolutions = convolutions_in(config.convolutions)

        def decode(window: Window) -> tuple[Tensor, Tensor]:
            with convolutions:
                return codec.decode(window)

        self._reads_on_host = codec.spec.reads_on_host
        self._lane = Lane(decode, codec, config)
        self.has_graphs = self.has_first_lane = self._lane.graphs is not None
        self._first_lane = self._lane
        if self.has_first_lane:
            self._first_lane = Lane(decode, codec, config, is_first=True)

    def enter(self) -> None:
        """Make the first chunks' stream the thread's current one, so that it also creates the states before them."""
        torch.cuda.synchronize(self._device)  # the weights were loaded on another stream
        torch.cuda.set_stream(self._first_lane.stream)

    def capture(self, window: Window, is_first: bool = False) -> bool:
        """Capture a graph for the shape of `window`, as `Launcher` describes."""
        lane = self._first_lane if is_first else self._lane
        with torch.cuda.stream(lane.stream), torch.inference_mode():
            return lane.graphs is not None and lane.graphs.capture(self._sent(_pinned(window)))

    def launch(self, windows: Sequence[FrameWindow], states: Sequence[Tensor], is_first: bool = False) -> Flight:
        lane = self._first_lane if is_first else self._lane
        with torch.cuda.stream(lane.stream), torch.inference_mode():
            window = _pinned(stack(windows, states))
            # `blocking`: the host sleeps until the samples are available, instead of occupying a core
            begun, done = (torch.cuda.Event(enable_timing=True, blocking=True) for _ in range(2))
            begun.record()  # recorded once the device has finished the previous batch
            pcm, after = lane.decode(self._sent(window))
            pcm = pcm.float().contiguous()
            samples = torch.empty(pcm.shape, dtype=torch.float32, pin_memory=True)
            samples.copy_(pcm, non_blocking=True)
            copies = own_states(after)  # before `done`, after which another stream may read them
            done.record()

        def collect() -> np.ndarray:
            done.synchronize()
            return samples.numpy().copy()  # the pinned memory returns to its pool

        return Flight(copies, collect, pcm, lambda: begun.elapsed_time(done) / 1e3, done.query)

    def _sent(self, window: Window) -> Window:
        """Start copying codes and frame indices to the device; return the window with the copies.

        A codec that reads them on the host makes its own copies.
        """
        if self._reads_on_host:
            return window
        codes, first = (each.to(self._device, non_blocking=True) for each in (window.codes, window.first))
        return replace(window, codes=codes, first=first)


def _pinned(window: Window) -> Window:
    return replace(window, codes=window.codes.pin_memory(), first=window.first.pin_memory())


def make_launcher(codec: Codec, config: DecoderConfig) -> Launcher:
    """Return the launcher for the device in `config`; onnxruntime codecs always get host tensors.

    Raises:
        CheckpointError: If the codec has no convolutions for the configured mode.
    """
    check_mode(codec, config.convolutions)
    if torch.device(config.device).type == "cuda" and config.runtime == "torch":
        return CudaLauncher(codec, config)
    return HostLauncher(codec, config.convolutions)


def capture_shapes(launcher: Launcher, codec: Codec, policy: ChunkPolicy, max_batch: int) -> int:
    """Capture graphs of the usual chunk shapes for batch sizes that are powers of two; return the number of graphs.

    Batches with many frames are captured first, so that later graphs reuse their memory.

    Args:
        launcher: Launcher for the codec's device.
        codec: The codec.
        policy: Chunk sizes of requests without sizes of their own.
        max_batch: Maximum batch size.
    """
    if not launcher.has_graphs:
        return 0
    windows = _windows(launcher, codec, policy)[::-1]
    batches = (1 << power for power in range((max_batch - 1).bit_length(), -1, -1))
    shapes = [(batch, window, state) for batch in batches for window, state in windows]
    shapes.sort(key=lambda shape: shape[0] * shape[1].codes.shape[1], reverse=True)
    num_graphs = 0
    for is_first in (False, True) if launcher.has_first_lane else (False,):
        for batch, window, state in shapes:
            if not is_first or window.left == 0:
                num_graphs += launcher.capture(stack([window] * batch, [state] * batch), is_first)
    return num_graphs


def warm_up(
    launcher: Launcher,
    codec: Codec,
    policy: ChunkPolicy,
    max_batch: int,
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Decode batches of all sizes with the usual chunk shapes, smallest first; return the number of batches.

    Libraries take about 15 ms on a CPU to prepare a shape, enough to make a client underrun.

    Args:
        launcher: Launcher for the codec's device.
        codec: The codec.
        policy: Chunk sizes of requests without sizes of their own.
        max_batch: Maximum batch size.
        seconds: Time after which no further batch is started.
        clock: Monotonic clock in seconds.
    """
    until = clock() + seconds
    num_batches = 0
    for window, state in _batches(launcher, codec, policy, max_batch) if seconds else ():
        if clock() >= until:
            break
        launcher.launch([window] * len(state), state.split(1)).pcm()
        num_batches += 1
    return num_batches


def _batches(
    launcher: Launcher, codec: Codec, policy: ChunkPolicy, max_batch: int
) -> Iterator[tuple[FrameWindow, torch.Tensor]]:
    """Yield windows of an utterance, each with the codec states [B, D] for a batch of them."""
    windows = _windows(launcher, codec, policy)
    for batch in range(1, max_batch + 1):
        for window, state in windows:
            if batch <= batch_limit(codec.spec, window.codes.shape[1], max_batch):
                yield window, state.repeat(batch, 1)


def _windows(launcher: Launcher, codec: Codec, policy: ChunkPolicy) -> list[tuple[FrameWindow, torch.Tensor]]:
    """Return the windows of `windows_of`, each with the codec state [1, D] before it."""
    spec = codec.spec
    beginning = codec.initial_state(1)
    windows = windows_of(spec, policy)
    state = beginning
    if windows and not spec.blocks:
        num_frames = max(1, spec.start_frames, spec.left_frames + spec.right_frames)
        state = _state_after(launcher, codec, np.zeros((spec.num_codebooks, num_frames), np.int64))
    return [(window, state if window.first else beginning) for window in windows]


def windows_of(spec: CodecSpec, policy: ChunkPolicy) -> list[FrameWindow]:
    """Return windows of an utterance, one per usual shape, the smallest first. The codes are zeros.

    Whole utterances have no usual shape, because they rarely have the same length.
    """
    if spec.max_frames is not None:
        return []
    if spec.blocks:
        return _blocks(spec)
    before = np.zeros((spec.num_codebooks, max(1, spec.start_frames, spec.left_frames + spec.right_frames)), np.int64)
    windows = {window.shape: window for window in _early_windows(spec, policy)}
    windows |= {(window := _window_after(before, size, spec)).shape: window for size in policy.sizes}
    return sorted(windows.values(), key=lambda window: window.codes.shape[1])


def _blocks(spec: CodecSpec) -> list[FrameWindow]:
    """Return the windows of an utterance's first blocks, one per block size.

    The shapes of these windows do not depend on the state.
    """
    windower = Windower(spec)
    pushed = [windower.push(np.zeros((spec.num_codebooks, size), np.int64), is_final=False) for size in spec.blocks]
    return [window for window in pushed if window is not None]


def _early_windows(spec: CodecSpec, policy: ChunkPolicy) -> list[FrameWindow]:
    """Return windows from an utterance's start, which lack a part of the codec's left context, one per shape.

    The first chunk has one of its usual sizes. Each later one has as many frames as the one before, or twice as many.
    """
    found = dict[tuple[int, ...], FrameWindow]()
    chunks = [(Windower(spec), max(spec.start_frames, size + spec.right_frames), size) for size in policy.first_sizes]
    while chunks:
        windower, num_frames, size = chunks.pop(0)
        window = windower.push(np.zeros((spec.num_codebooks, num_frames), np.int64), is_final=False)
        assert window is not None
        found.setdefault(window.shape, window)
        if windower.next_frame < spec.left_frames:
            following = sorted({policy.round_down(each) for each in (size, 2 * size)})
            chunks += [(windower.copy(), each, each) for each in following]
    return list(found.values())


def _window_after(codes: np.ndarray, num_frames: int, spec: CodecSpec) -> FrameWindow:
    """Return the window that becomes complete when `num_frames` frames follow `codes` [K, T]."""
    windower = Windower(spec)
    windower.push(codes, is_final=False)
    window = windower.push(codes[:, :1].repeat(num_frames, axis=1), is_final=False)
    assert window is not None
    return window


def _state_after(launcher: Launcher, codec: Codec, codes: np.ndarray) -> torch.Tensor:
    """Return the codec state [1, D] after decoding as much of `codes` [K, T] as possible without further frames."""
    state = codec.initial_state(1)
    window = Windower(codec.spec).push(codes, is_final=False)
    if window is None:
        return state
    flight = launcher.launch([window], [state])
    flight.pcm()
    return flight.states[0]
