"""What is done before the first chunk, because the first window of a shape takes several times as long as the next."""

import time
from collections.abc import Callable, Iterator

import numpy as np
import torch

from stretto.codec.base import Codec, CodecSpec, Window
from stretto.decoder.launching import Launcher
from stretto.decoder.streaming import FrameWindow, Windower
from stretto.streams.chunking import ChunkPolicy


def capture_shapes(launcher: Launcher, codec: Codec, max_batch: int) -> int:
    """Make graphs of the shapes that chunks have by default, for each power of two of rows; returns their number.

    The largest come first: those that follow fit into the memory that they leave.
    """
    num_graphs = 0
    if launcher.has_graphs:
        windows, state = _windows(launcher, codec)
        first = _first_window(codec.spec)
        shapes = [first] if codec.spec.blocks else [first, *windows]  # later blocks are too long for launches to matter
        largest = (max_batch - 1).bit_length()
        for batch in (1 << power for power in range(largest, -1, -1)):
            for window in reversed(shapes):
                num_graphs += launcher.capture(_repeated(window, state.repeat(batch, 1)))
    return num_graphs


def warm_up(
    launcher: Launcher, codec: Codec, max_batch: int, seconds: float, clock: Callable[[], float] = time.monotonic
) -> int:
    """Decode a batch of each size and shape that chunks have by default, small batches first; returns their number.

    It ends with the batch that is under way after `seconds`. What a library prepares for a shape takes 15 ms on a CPU,
    and a listener at the end of what was sent hears that.
    """
    until, num_batches = clock() + seconds, 0
    for window, state in _batches(launcher, codec, max_batch) if seconds else ():
        if clock() >= until:
            break
        launcher.launch(_repeated(window, state)).pcm()
        num_batches += 1
    return num_batches


def _batches(launcher: Launcher, codec: Codec, max_batch: int) -> Iterator[tuple[FrameWindow, torch.Tensor]]:
    """Windows from the midst of an utterance, and the states [B, D] of a batch of them."""
    windows, state = _windows(launcher, codec)
    for batch in range(1, max_batch + 1):
        for window in windows:
            yield window, state.repeat(batch, 1)


def _windows(launcher: Launcher, codec: Codec) -> tuple[list[FrameWindow], torch.Tensor]:
    """Windows from the midst of an utterance of zeros, smallest first, and the state [1, D] there."""
    policy, spec = ChunkPolicy(), codec.spec
    if spec.max_frames is not None:
        return [], codec.initial_state(1)  # every length is another shape, and the longest takes as long as it is
    if spec.blocks:
        return _blocks(spec), codec.initial_state(1)
    before = np.zeros((spec.num_codebooks, max(1, spec.start_frames, spec.left_frames + spec.right_frames)), np.int64)
    sizes = sorted({policy.fitting(num_frames) for num_frames in range(1, policy.steady_frames + 1)})
    return [_window_after(before, size, spec) for size in sizes], _state_after(launcher, codec, before)


def _blocks(spec: CodecSpec) -> list[FrameWindow]:
    """The windows of an utterance's first blocks, one of each size. A state says nothing about their shapes."""
    windower = Windower(spec)
    pushed = [windower.push(np.zeros((spec.num_codebooks, size), np.int64), is_final=False) for size in spec.blocks]
    return [window for window in pushed if window is not None]


def _first_window(spec: CodecSpec) -> FrameWindow:
    """The window of an utterance's first chunk."""
    num_frames = max(spec.start_frames, ChunkPolicy().first_frames + spec.right_frames)
    window = Windower(spec).push(np.zeros((spec.num_codebooks, num_frames), np.int64), is_final=False)
    assert window is not None
    return window


def _window_after(codes: np.ndarray, num_frames: int, spec: CodecSpec) -> FrameWindow:
    """The window that `num_frames` more frames complete after those of `codes` [K, T]."""
    windower = Windower(spec)
    windower.push(codes, is_final=False)
    window = windower.push(codes[:, :1].repeat(num_frames, axis=1), is_final=False)
    assert window is not None
    return window


def _state_after(launcher: Launcher, codec: Codec, codes: np.ndarray) -> torch.Tensor:
    """State [1, D] after the frames of `codes` [K, T] that can be decoded."""
    state = codec.initial_state(1)
    window = Windower(codec.spec).push(codes, is_final=False)
    if window is None:
        return state
    flight = launcher.launch(_repeated(window, state))
    flight.pcm()
    return flight.states.clone()


def _repeated(window: FrameWindow, state: torch.Tensor) -> Window:
    batch = len(state)
    return Window(
        codes=torch.from_numpy(np.repeat(window.codes[None], batch, axis=0)),
        left=window.left,
        right=window.right,
        first=torch.full((batch,), window.first),
        state=state,
    )
