"""Time of a decoder's batches as a server launches them: with CUDA graphs, and with the copies to and from the host."""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from stretto.codecs.base import Codec
from stretto.config import DecoderConfig
from stretto.decoder.launching import Launcher, make_launcher
from stretto.decoder.windows import FrameWindow

WARM_UPS = 3


@dataclass(frozen=True)
class Timing:
    """Median times of a batch in seconds, and its samples [B, n].

    Attributes:
        wall_s: From the launch to the samples on the host.
        device_s: Between the events before and after the work on the device; the wall time on the host.
    """

    wall_s: float
    device_s: float
    pcm: np.ndarray


@contextmanager
def launcher_of(codec: Codec, config: DecoderConfig) -> Iterator[Launcher]:
    """Yield a launcher for a decoder's configuration. On a GPU, the thread's stream is restored afterwards."""
    is_on_gpu = torch.device(config.device).type == "cuda"
    before = torch.cuda.current_stream() if is_on_gpu else None
    launcher = make_launcher(codec, config)
    launcher.enter()
    try:
        yield launcher
    finally:
        if before is not None:
            torch.cuda.synchronize()
            torch.cuda.set_stream(before)


def time_batch(launcher: Launcher, codec: Codec, num_windows: int, num_frames: int, rounds: int = 9) -> Timing:
    """Return the times of a batch of windows with random codes: `num_frames` frames each, and all their context."""
    spec = codec.spec
    length = spec.left_frames + num_frames + spec.right_frames
    codes = np.random.default_rng(0).integers(0, spec.codebook_size, (num_windows, spec.num_codebooks, length))
    windows = [
        FrameWindow(codes_of_window, spec.left_frames, spec.left_frames, spec.right_frames) for codes_of_window in codes
    ]
    states = [launcher.initial_state() for _ in windows]
    launcher.capture(windows)
    wall_s = list[float]()
    device_s = list[float]()
    for _ in range(WARM_UPS + rounds):
        begun = time.perf_counter()
        flight = launcher.launch(windows, states)
        pcm = flight.pcm()
        wall_s.append(time.perf_counter() - begun)
        device_s.append(wall_s[-1] if flight.device_s is None else flight.device_s())
    return Timing(statistics.median(wall_s[WARM_UPS:]), statistics.median(device_s[WARM_UPS:]), pcm)
