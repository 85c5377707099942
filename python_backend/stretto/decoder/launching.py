"""Launchers of batches, on the host or on a CUDA stream, with CUDA graphs and a warm-up.

The decoder warms up before the first chunk, because the first window of each shape takes several times as long.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor

from stretto.codecs.base import Codec, CodecSpec, Window, use_whole_float32
from stretto.config import DecoderConfig
from stretto.decoder.windows import MAX_REFERENCES, FrameWindow, Windower
from stretto.decoding.convolutions import check_mode, convolutions_in
from stretto.decoding.graphs import CudaGraphs, GraphCache, batch_limit, limits_of, padded_batch
from stretto.decoding.states import Decode, State, StateRow, StateTable, decode_in_rows, row_numbers
from stretto.streams.chunking import ChunkPolicy

PRIMITIVES = 1 << 14  # oneDNN primitives to cache, about 100 kB each


@dataclass(frozen=True, slots=True)
class Flight:
    """Batch that has been launched.

    Attributes:
        states: Codec state of each utterance after the batch, each in memory of its own.
        pcm: Waits for the samples and returns them, float32 [B, n].
        on_device: The samples on the GPU; None on the host.
        device_s: Returns the time on the device, once the samples are available; None on the host.
        is_done: Returns True once `pcm` need not wait.
    """

    states: Sequence[State]
    pcm: Callable[[], np.ndarray]
    on_device: Tensor | None = None
    device_s: Callable[[], float] | None = None
    is_done: Callable[[], bool] = lambda: True


class Launcher(Protocol):
    """Interface of executors that decode batches in launch order. Batches of first chunks may overtake others.

    Attributes:
        depth: Maximum number of batches in flight while another is being prepared.
        has_first_lane: True if batches of first chunks do not wait for others. At most one of them is in flight.
        has_graphs: True if graphs can be captured.
        batch_s: Time after which a batch gets no further window.
        fills_spare_time: True if a batch may last longer: half of the time until the first client underruns.
    """

    depth: int
    has_first_lane: bool
    has_graphs: bool
    batch_s: float
    fills_spare_time: bool

    def enter(self) -> None:
        """Prepare the calling thread, which will launch all batches. Call once, before any codec state is created."""
        ...

    def initial_state(self) -> State:
        """Return the codec's state before the first frame of an utterance."""
        ...

    def capture(self, windows: Sequence[FrameWindow], is_first: bool = False) -> bool:
        """Capture a graph for a batch of this shape; return True if one exists afterwards."""
        ...

    def launch(self, windows: Sequence[FrameWindow], states: Sequence[State], is_first: bool = False) -> Flight:
        """Start decoding a batch, given the codec state before each window.

        The caller keeps the states, which may have been written on another stream, until the device has read them.
        """
        ...


def stack(windows: Sequence[FrameWindow], states: Sequence[State]) -> Window:
    """Stack windows of equal shape and the states [1, D] before them into one batch for the codec."""
    return _stacked(windows, torch.cat(cast(list[Tensor], list(states))))


def _stacked(windows: Sequence[FrameWindow], state: Tensor, rows: Tensor | None = None) -> Window:
    return Window(
        codes=torch.from_numpy(np.stack([window.codes for window in windows])),
        left=windows[0].left,
        right=windows[0].right,
        first=torch.tensor([window.first for window in windows]),
        state=state,
        rows=rows,
    )


def own_states(states: Tensor) -> list[Tensor]:
    """Return copies [1, D] of the rows of `states` [B, D]; views would keep the states of the whole batch alive."""
    return [state.clone() for state in states.split(1)]


class HostLauncher:
    """Launcher that decodes synchronously on the host.

    Args:
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

        Chunks have 96 shapes with about 60 convolutions each. With the default capacity of 1024, shapes would be
        evicted, and be slow when they recur.
        """
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(PRIMITIVES))

    def initial_state(self) -> State:
        return self._codec.initial_state(1)

    def capture(self, windows: Sequence[FrameWindow], is_first: bool = False) -> bool:
        return False

    def launch(self, windows: Sequence[FrameWindow], states: Sequence[State], is_first: bool = False) -> Flight:
        with self._convolutions:
            pcm, after = self._codec.decode(stack(windows, states))
        samples = pcm.float().cpu().numpy()
        return Flight(own_states(after), lambda: samples)


class Lane:
    """CUDA stream of the decoder, and the graphs that are replayed on it, with buffers of their own.

    Args:
        decode: Function that decodes a window without a graph.
        is_first: True for the lane of first chunks, whose kernels have priority.

    Attributes:
        decode: Function that decodes a window, with a graph if its shape has one.
        graphs: None if the codec or the configuration has none.
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

    A codec with graphs has two streams; the one for first chunks has a higher priority. The next window of an utterance
    is launched after the host has seen the end of the last one, so streams never wait for each other. The states are
    rows of one table (`decoding.states`), so that a batch copies none.

    All transfers use pinned memory. The host waits for one copy per batch, and never for the whole device.
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
        decode_window = decode_in_rows(codec)

        def decode(window: Window) -> tuple[Tensor, Tensor]:
            with convolutions:
                return decode_window(self._sent(window))

        self._codec = codec
        self._lane = Lane(decode, codec, config)
        self.has_graphs = self.has_first_lane = self._lane.graphs is not None
        self._first_lane = self._lane
        self._table: StateTable | None = None
        if self.has_first_lane:
            self._first_lane = Lane(decode, codec, config, is_first=True)
            initial = codec.initial_state(1)
            self._table = StateTable(initial, num_rows(config, initial.nbytes))

    def enter(self) -> None:
        """Make the stream of first chunks current, so that it also creates the states before them."""
        torch.cuda.synchronize(self._device)  # the weights were loaded on another stream
        torch.cuda.set_stream(self._first_lane.stream)

    def initial_state(self) -> State:
        return self._codec.initial_state(1) if self._table is None else self._table.initial

    def capture(self, windows: Sequence[FrameWindow], is_first: bool = False) -> bool:
        lane = self._first_lane if is_first else self._lane
        if lane.graphs is None or self._table is None:
            return False
        rows = row_numbers([], [], padded_batch(len(windows)))
        with torch.cuda.stream(lane.stream), torch.inference_mode():
            return lane.graphs.capture(self._sent(_pinned(_stacked(windows, self._table.states, rows))))

    def launch(self, windows: Sequence[FrameWindow], states: Sequence[State], is_first: bool = False) -> Flight:
        lane = self._first_lane if is_first else self._lane
        with torch.cuda.stream(lane.stream), torch.inference_mode():
            window, rows = self._window(windows, states)
            # `blocking`: the host sleeps until the samples are available, instead of occupying a core
            begun, done = (torch.cuda.Event(enable_timing=True, blocking=True) for _ in range(2))
            begun.record()  # recorded once the device has finished the previous batch
            pcm, after = lane.decode(window)
            pcm = pcm.float().contiguous()
            samples = torch.empty(pcm.shape, dtype=torch.float32, pin_memory=True)
            samples.copy_(pcm, non_blocking=True)
            kept = own_states(after) if rows is None else rows  # before `done`, after which another stream reads them
            done.record()

        def collect() -> np.ndarray:
            done.synchronize()
            return samples.numpy().copy()  # the pinned memory returns to its pool

        return Flight(kept, collect, pcm, lambda: begun.elapsed_time(done) / 1e3, done.query)

    def _window(
        self, windows: Sequence[FrameWindow], states: Sequence[State]
    ) -> tuple[Window, Sequence[StateRow] | None]:
        """Return a batch for the codec in pinned memory, and the rows of the states after it; None without a table."""
        if self._table is None:
            return _pinned(stack(windows, states)), None
        before = cast(Sequence[StateRow], states)
        after = self._table.take(len(windows))
        rows = row_numbers(before, after, padded_batch(len(windows)))
        return _pinned(_stacked(windows, self._table.states, rows)), after

    def _sent(self, window: Window) -> Window:
        """Start copying codes, frame indices and rows to the device, unless the codec reads them on the host."""
        if self._codec.spec.reads_on_host:
            return window
        codes = window.codes.to(self._device, non_blocking=True)
        first = window.first.to(self._device, non_blocking=True)
        rows = None if window.rows is None else window.rows.to(self._device, non_blocking=True)
        return replace(window, codes=codes, first=first, rows=rows)


def _pinned(window: Window) -> Window:
    rows = None if window.rows is None else window.rows.pin_memory()
    return replace(window, codes=window.codes.pin_memory(), first=window.first.pin_memory(), rows=rows)


def num_rows(config: DecoderConfig, state_bytes: int) -> int:
    """Return the number of states on a GPU: of open utterances, batches in flight and voice references."""
    num_references = min(MAX_REFERENCES, (config.reference_mb << 20) // max(1, state_bytes))
    return config.max_utterances + num_in_flight(config.max_batch) + num_references


def num_in_flight(max_batch: int) -> int:
    """Return the maximum number of windows in flight on a GPU with graphs."""
    return (CudaLauncher.depth + 1) * max_batch + limits_of(max_batch, is_first=True)[0]


def make_launcher(codec: Codec, config: DecoderConfig) -> Launcher:
    """Return the launcher for the device in `config`; onnxruntime codecs always get host tensors.

    If the codec has no convolutions for the configured mode, raise CheckpointError.
    """
    check_mode(codec, config.convolutions)
    if torch.device(config.device).type == "cuda" and config.runtime == "torch":
        return CudaLauncher(codec, config)
    return HostLauncher(codec, config.convolutions)


def capture_shapes(launcher: Launcher, codec: Codec, policy: ChunkPolicy, max_batch: int) -> int:
    """Capture graphs of the usual chunk shapes for batch sizes that are powers of two; return the number of graphs.

    Batches with many frames are captured first, so that later graphs reuse their memory. `policy` has the chunk sizes
    of requests that set none.
    """
    if not launcher.has_graphs:
        return 0
    windows = windows_of(codec.spec, policy)[::-1]
    batches = (1 << power for power in range((max_batch - 1).bit_length(), -1, -1))
    shapes = [(batch, window) for batch in batches for window in windows]
    shapes.sort(key=lambda shape: shape[0] * shape[1].codes.shape[1], reverse=True)
    num_graphs = 0
    for is_first in (False, True) if launcher.has_first_lane else (False,):
        for batch, window in shapes:
            if not is_first or window.left == 0:
                num_graphs += launcher.capture([window] * batch, is_first)
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

    Libraries take about 15 ms on a CPU to prepare a shape, enough to make a client underrun. After `seconds`, no
    further batch is started.
    """
    until = clock() + seconds
    num_batches = 0
    for windows, states in _batches(launcher, codec, policy, max_batch) if seconds else ():
        if clock() >= until:
            break
        launcher.launch(windows, states).pcm()
        num_batches += 1
    return num_batches


def _batches(
    launcher: Launcher, codec: Codec, policy: ChunkPolicy, max_batch: int
) -> Iterator[tuple[list[FrameWindow], list[State]]]:
    windows = _windows(launcher, codec, policy)
    for batch in range(1, max_batch + 1):
        for window, state in windows:
            if batch <= batch_limit(codec.spec, window.codes.shape[1], max_batch):
                yield [window] * batch, [state] * batch


def _windows(launcher: Launcher, codec: Codec, policy: ChunkPolicy) -> list[tuple[FrameWindow, State]]:
    spec = codec.spec
    beginning = launcher.initial_state()
    windows = windows_of(spec, policy)
    state = beginning
    if windows and not spec.blocks:
        num_frames = max(1, spec.start_frames, spec.left_frames + spec.right_frames)
        state = _state_after(launcher, codec, np.zeros((spec.num_codebooks, num_frames), np.int64))
    return [(window, state if window.first else beginning) for window in windows]


def windows_of(spec: CodecSpec, policy: ChunkPolicy) -> list[FrameWindow]:
    """Return windows of zeros, one per usual shape, the smallest first.

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
    """Return one window per block size; its shape does not depend on the state."""
    windower = Windower(spec)
    pushed = [windower.push(np.zeros((spec.num_codebooks, size), np.int64), is_final=False) for size in spec.blocks]
    return [window for window in pushed if window is not None]


def _early_windows(spec: CodecSpec, policy: ChunkPolicy) -> list[FrameWindow]:
    """Return windows from an utterance's start, which lack a part of the codec's left context, one per shape.

    The first chunk has one of its usual sizes. Each later one has as many frames as the one before, or twice as many.
    """
    windows = dict[tuple[int, ...], FrameWindow]()
    chunks = [(Windower(spec), max(spec.start_frames, size + spec.right_frames), size) for size in policy.first_sizes]
    while chunks:
        windower, num_frames, size = chunks.pop(0)
        window = windower.push(np.zeros((spec.num_codebooks, num_frames), np.int64), is_final=False)
        assert window is not None
        windows.setdefault(window.shape, window)
        if windower.next_frame < spec.left_frames:
            following = sorted({policy.round_down(frames) for frames in (size, 2 * size)})
            chunks += [(windower.copy(), frames, frames) for frames in following]
    return list(windows.values())


def _window_after(codes: np.ndarray, num_frames: int, spec: CodecSpec) -> FrameWindow:
    """Return the window that is complete when `num_frames` frames follow `codes` [K, T]."""
    windower = Windower(spec)
    windower.push(codes, is_final=False)
    window = windower.push(codes[:, :1].repeat(num_frames, axis=1), is_final=False)
    assert window is not None
    return window


def _state_after(launcher: Launcher, codec: Codec, codes: np.ndarray) -> State:
    """Return the codec state after decoding as much of `codes` [K, T] as possible without further frames."""
    state = launcher.initial_state()
    window = Windower(codec.spec).push(codes, is_final=False)
    if window is None:
        return state
    flight = launcher.launch([window], [state])
    flight.pcm()
    return flight.states[0]
