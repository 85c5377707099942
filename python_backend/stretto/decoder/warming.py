"""Windows decoded before any is asked for, because the first of a shape takes several times as long as the next."""

import time
from collections.abc import Callable, Iterator

import numpy as np
import torch

from stretto.codec.base import Codec, CodecSpec, Window
from stretto.decoder.launching import Launcher
from stretto.decoder.streaming import FrameWindow, Windower
from stretto.streams.chunking import ChunkPolicy


def warm_up(
    launcher: Launcher, codec: Codec, max_batch: int, seconds: float, clock: Callable[[], float] = time.monotonic
) -> int:
    """Decode a batch of each size and shape that chunks have by default, small batches first; returns their number.

    It ends with the batch that is under way after `seconds`. What a library prepares for a shape takes 15 ms on a CPU,
    and a listener at the end of what was sent hears that.
    """
    until, num_batches = clock() + seconds, 0
    for window, state in _windows(launcher, codec, max_batch) if seconds else ():
        if clock() >= until:
            break
        launcher.launch(_repeated(window, state)).pcm()
        num_batches += 1
    return num_batches


def _windows(launcher: Launcher, codec: Codec, max_batch: int) -> Iterator[tuple[FrameWindow, torch.Tensor]]:
    """Windows from the midst of an utterance of zeros, and the states [B, D] of a batch of them."""
    policy, spec = ChunkPolicy(), codec.spec
    before = np.zeros((spec.num_codebooks, max(1, spec.start_frames, spec.left_frames + spec.right_frames)), np.int64)
    state = _state_after(launcher, codec, before)
    sizes = sorted({policy.fitting(num_frames) for num_frames in range(1, policy.steady_frames + 1)})
    windows = [_window_after(before, size, spec) for size in sizes]
    for batch in range(1, max_batch + 1):
        for window in windows:
            yield window, state.repeat(batch, 1)


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
