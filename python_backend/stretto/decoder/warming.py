"""Warm-up before the first chunk, because the first window of a shape takes several times as long as later ones."""

import time
from collections.abc import Callable, Iterator

import numpy as np
import torch

from stretto.codecs.base import Codec, CodecSpec, Window
from stretto.decoder.launching import Launcher
from stretto.decoder.streaming import FrameWindow, Windower
from stretto.streams.chunking import ChunkPolicy


def capture_shapes(launcher: Launcher, codec: Codec, max_batch: int) -> int:
    """Capture graphs of the default chunk shapes for each power of two of rows; return their number.

    The largest are captured first, so that later ones fit into the same memory.
    """
    num_graphs = 0
    if launcher.has_graphs:
        windows, state = _windows(launcher, codec)
        first = _first_window(codec.spec)
        shapes = [first] if codec.spec.blocks else [first, *windows]  # later blocks are long
        largest = (max_batch - 1).bit_length()
        for batch in (1 << power for power in range(largest, -1, -1)):
            for window in reversed(shapes):
                num_graphs += launcher.capture(_repeated(window, state.repeat(batch, 1)))
    return num_graphs


def warm_up(
    launcher: Launcher, codec: Codec, max_batch: int, seconds: float, clock: Callable[[], float] = time.monotonic
) -> int:
    """Decode batches of each size and default chunk shape, small ones first; return their number.

    Libraries prepare each shape in about 15 ms on a CPU, enough to make a client underrun. No batch starts after
    `seconds`.
    """
    until, num_batches = clock() + seconds, 0
    for window, state in _batches(launcher, codec, max_batch) if seconds else ():
        if clock() >= until:
            break
        launcher.launch(_repeated(window, state)).pcm()
        num_batches += 1
    return num_batches


def _batches(launcher: Launcher, codec: Codec, max_batch: int) -> Iterator[tuple[FrameWindow, torch.Tensor]]:
    """Yield windows from the middle of an utterance with the states [B, D] of a batch of them."""
    windows, state = _windows(launcher, codec)
    for batch in range(1, max_batch + 1):
        for window in windows:
            yield window, state.repeat(batch, 1)


def _windows(launcher: Launcher, codec: Codec) -> tuple[list[FrameWindow], torch.Tensor]:
    """Return windows from the middle of an utterance of zeros, smallest first, and the codec state [1, D] there."""
    policy, spec = ChunkPolicy(), codec.spec
    if spec.max_frames is not None:
        return [], codec.initial_state(1)  # every utterance length is a shape of its own
    if spec.blocks:
        return _blocks(spec), codec.initial_state(1)
    before = np.zeros((spec.num_codebooks, max(1, spec.start_frames, spec.left_frames + spec.right_frames)), np.int64)
    sizes = sorted({policy.fitting(num_frames) for num_frames in range(1, policy.steady_frames + 1)})
    return [_window_after(before, size, spec) for size in sizes], _state_after(launcher, codec, before)


def _blocks(spec: CodecSpec) -> list[FrameWindow]:
    """Return the windows of an utterance's first blocks, one per size; their shape does not depend on the state."""
    windower = Windower(spec)
    pushed = [windower.push(np.zeros((spec.num_codebooks, size), np.int64), is_final=False) for size in spec.blocks]
    return [window for window in pushed if window is not None]


def _first_window(spec: CodecSpec) -> FrameWindow:
    """Return the window of an utterance's first chunk."""
    num_frames = max(spec.start_frames, ChunkPolicy().first_frames + spec.right_frames)
    window = Windower(spec).push(np.zeros((spec.num_codebooks, num_frames), np.int64), is_final=False)
    assert window is not None
    return window


def _window_after(codes: np.ndarray, num_frames: int, spec: CodecSpec) -> FrameWindow:
    """Return the window completed by `num_frames` more frames after `codes` [K, T]."""
    windower = Windower(spec)
    windower.push(codes, is_final=False)
    window = windower.push(codes[:, :1].repeat(num_frames, axis=1), is_final=False)
    assert window is not None
    return window


def _state_after(launcher: Launcher, codec: Codec, codes: np.ndarray) -> torch.Tensor:
    """Return the codec state [1, D] after the decodable frames of `codes` [K, T]."""
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
