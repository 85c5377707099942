"""The decoder on the device: exact, with graphs and without; how exact in narrow types; how many streams it follows."""

import statistics
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from stretto.codec.base import Codec, Window
from stretto.config import DecoderConfig
from stretto.decoder.graphs import WORTH_CAPTURING
from stretto.decoder.worker import DecoderWorker
from stretto.records.chunk import Chunk
from stretto.records.event import Event
from stretto.streams.segment import Segment
from torch import nn

from benchmarks.checkpoints.random_stateful import make_stateful
from benchmarks.decoder import Arm, make_codec, measure_batching
from benchmarks.gpu.sections import Setup

CODECS = ("tiny", "xcodec", "dac_24khz", "higgs")
CARRYING = ("espnet_dac", "mimi", "encodec_24khz")  # a state, from window to window
CHUNKS = (2, 5, 25)
EXACT, ALIKE = 1e-5, 1e-3  # streamed against one-shot on the device; the device against the CPU
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
FRAMES = 25  # of a window


class Listener:
    """Keeps the samples of one utterance."""

    def __init__(self) -> None:
        self.parts: list[np.ndarray] = []
        self.error: Exception | None = None
        self.over = threading.Event()

    def send(self, pcm: np.ndarray | None, event: Event) -> None:
        self.parts += [] if pcm is None else [pcm]
        if event["is_final"]:
            self.over.set()

    def fail(self, error: Exception) -> None:
        self.error = error
        self.over.set()

    def is_cancelled(self) -> bool:
        return False

    def pcm(self) -> np.ndarray:
        """All samples [n]; waits for the last."""
        if not self.over.wait(120) or self.error is not None:
            raise RuntimeError(f"an utterance failed: {self.error or 'no answer within 120 s'}")
        return np.concatenate(self.parts)


def streamed(codec: Codec, config: DecoderConfig, codes: np.ndarray, size: int) -> np.ndarray:
    """Pcm [B, n] of codes [B, K, T] that come in chunks of `size`, those of all utterances by turns."""
    worker, listeners = DecoderWorker(codec, config), [Listener() for _ in codes]
    starts = range(0, codes.shape[2], size)
    for index, start in enumerate(starts):
        chunk = Chunk(index, Segment.AUDIO, is_final=index == len(starts) - 1)
        for row, listener in enumerate(listeners):
            worker.push(str(row), chunk, codes[row, :, start : start + size], listener)
    pcm = np.stack([listener.pcm() for listener in listeners])
    worker.stop()
    return pcm


def at_once(codec: Codec, codes: np.ndarray) -> np.ndarray:
    """Pcm [B, n] of codes [B, K, T], each utterance as one window."""
    batch = len(codes)
    window = Window(torch.from_numpy(codes), 0, 0, torch.zeros(batch, dtype=torch.int64), codec.initial_state(batch))
    return codec.decode(window)[0].float().cpu().numpy()


def run(setup: Setup) -> Iterator[Mapping[str, Any]]:
    """A line for each codec, graphs on and off, then for each type, then for each batch size."""
    names = CODECS[:1] if setup.is_small else CODECS
    for name in (*names, *(CARRYING[:1] if setup.is_small else CARRYING)):
        yield from _exactness(setup, name)
    for dtype in ("bfloat16", "float16"):
        yield from (_narrow(setup, name, dtype) for name in names)
    yield from _throughput(setup)


def _narrow_codec(name: str, device: str) -> Codec:
    if name not in CARRYING:
        return make_codec(name, device, True)
    codec = make_stateful(name)
    assert isinstance(codec, nn.Module)
    codec.to(device)
    return codec


def _codes(codec: Codec, batch: int, frames: int) -> np.ndarray:
    spec = codec.spec
    return np.random.default_rng(0).integers(0, spec.codebook_size, (batch, spec.num_codebooks, frames))


def _exactness(setup: Setup, name: str) -> Iterator[dict[str, Any]]:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    codec = _narrow_codec(name, setup.device)
    codes = _codes(codec, 3 if setup.is_small else 12, 40 if setup.is_small else 250)
    whole, reference = at_once(codec, codes), at_once(_narrow_codec(name, "cpu"), codes)
    for graphs in (False, True):
        config = DecoderConfig(device=setup.device, graphs=graphs, max_batch=64)
        seams = max(float(np.abs(streamed(codec, config, codes, size) - whole).max()) for size in CHUNKS)
        apart = float(np.abs(whole - reference).max())
        record = {"what": "exactness", "codec": name, "graphs": graphs, "seams": seams, "from_cpu": apart}
        yield record | {"ok": seams <= EXACT and apart <= ALIKE}


def _narrow(setup: Setup, name: str, dtype: str) -> dict[str, Any]:
    """The error of a narrow type, relative to the root mean square of the exact samples."""
    codec = make_codec(name, setup.device, True)
    codes = _codes(codec, 2, 50)
    exact, near = (
        streamed(codec, DecoderConfig(device=setup.device, dtype=each), codes, 25) for each in ("float32", dtype)
    )
    error = float(np.sqrt(np.mean((near - exact) ** 2) / np.mean(exact**2)))
    return {
        "what": "dtype",
        "codec": name,
        "dtype": dtype,
        "relative_error": error,
        "ok": bool(np.isfinite(near).all()),
    }


def _throughput(setup: Setup) -> Iterator[dict[str, Any]]:
    """How many real-time streams the decoder follows at each batch size, wide as published; and what batching saves."""
    names, batches, rounds = (("tiny",), (1, 4), 1) if setup.is_small else (("tiny", "xcodec"), BATCHES, 5)
    for name in names:
        codec = make_codec(name, setup.device, setup.is_small)
        config = DecoderConfig(device=setup.device, max_batch=batches[-1], max_utterances=1024)
        for graphs in (False, True):
            arm = Arm(codec, replace(config, graphs=graphs))
            for batch in batches:
                for _ in range(rounds if setup.is_small else WORTH_CAPTURING + rounds):
                    arm.run(batch, FRAMES)
                wall_s = statistics.median(arm.wall_s[-rounds:])
                streams = round(batch * FRAMES / codec.spec.frame_rate / wall_s, 1)
                yield {"what": "streams", "codec": name, "graphs": graphs, "batch": batch, "streams_real_time": streams}
            arm.stop()
        figures = measure_batching(codec, replace(config, max_batch=64), min(64, batches[-1]), 8, min(3, rounds))
        yield {"what": "batching", "codec": name, **figures}
