"""One codec on the device: exactness with and without graphs, error of narrow types, and real-time streams."""

import logging
import statistics
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks.decoder import Arm, make_codec
from benchmarks.gpu.jobs import Setup, failure
from stretto.codecs.base import Codec, Window
from stretto.config import DecoderConfig
from stretto.decoder.launching import WORTH_CAPTURING
from stretto.decoder.worker import DecoderWorker
from stretto.records.chunk import Chunk
from stretto.records.event import Event
from stretto.streams.layout import Segment

CHUNKS = (2, 5, 25)
EXACT, ALIKE = 1e-5, 1e-3  # streamed against one decode on the device; device against CPU
BATCHES = (1, 16, 64)
FRAMES = 25  # frames of a window
PATIENCE_S = 120.0


class Listener:
    """Collects the samples of one utterance."""

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
        """Return all samples [n], after waiting for the last."""
        if not self.over.wait(PATIENCE_S):
            raise TimeoutError(f"an utterance has not ended after {PATIENCE_S:.0f} s")
        if self.error is not None:
            raise self.error
        return np.concatenate(self.parts)


class CaptureErrors(logging.Handler):
    """Collects the decoder's log messages about shapes that could not be captured."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.errors: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Store the error's message."""
        error = record.exc_info[1] if record.exc_info else None
        self.errors.append(f"{record.getMessage()}: {type(error).__name__}: {error}"[:500])


@contextmanager
def capture_errors() -> Iterator[list[str]]:
    """Yield the capture errors of decoders that run during the `with` block."""
    handler, logger = CaptureErrors(), logging.getLogger("stretto.decoder.launching")
    logger.addHandler(handler)
    try:
        yield handler.errors
    finally:
        logger.removeHandler(handler)


def streamed(codec: Codec, config: DecoderConfig, codes: np.ndarray, *sizes: int) -> list[np.ndarray]:
    """Return samples [B, n] of codes [B, K, T] for each size of chunks; one worker captures its graphs once for all."""
    worker = DecoderWorker(codec, config)
    try:
        return [_stream(worker, codes, size) for size in sizes]
    finally:
        worker.stop()


def _stream(worker: DecoderWorker, codes: np.ndarray, size: int) -> np.ndarray:
    """Return samples [B, n] of codes [B, K, T] sent in chunks of `size`, all utterances together."""
    listeners, starts = [Listener() for _ in codes], range(0, codes.shape[2], size)
    for index, start in enumerate(starts):
        chunk = Chunk(index, Segment.AUDIO, is_final=index == len(starts) - 1)
        for row, listener in enumerate(listeners):
            worker.push(f"{size}-{row}", chunk, codes[row, :, start : start + size], listener)
    return np.stack([listener.pcm() for listener in listeners])


def at_once(codec: Codec, codes: np.ndarray) -> np.ndarray:
    """Return samples [B, n] of codes [B, K, T], each utterance decoded as one window."""
    batch = len(codes)
    window = Window(torch.from_numpy(codes), 0, 0, torch.zeros(batch, dtype=torch.int64), codec.initial_state(batch))
    return codec.decode(window)[0].float().cpu().numpy()


def run(setup: Setup, name: str) -> Iterator[dict[str, Any]]:
    """Yield a line without graphs and with them, then for each batch size, then for each narrow type."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    parts = (_exactness, _speed, _narrow)
    for part in parts:
        for figures in part(setup, name):
            yield {"codec": name, "what": part.__name__.strip("_"), **figures}


def codes_of(codec: Codec, batch: int, frames: int) -> np.ndarray:
    spec = codec.spec
    return np.random.default_rng(0).integers(0, spec.codebook_size, (batch, spec.num_codebooks, frames))


def _exactness(setup: Setup, name: str) -> Iterator[dict[str, Any]]:
    codec = make_codec(name, setup.device, is_narrow=True)
    codes = codes_of(codec, 2 if setup.is_small else 12, 30 if setup.is_small else 250)
    whole, reference = at_once(codec, codes), at_once(make_codec(name, "cpu", is_narrow=True), codes)
    from_cpu = float(np.abs(whole - reference).max())
    for graphs in (False, True):
        config = DecoderConfig(device=setup.device, graphs=graphs, max_batch=16)
        try:
            with capture_errors() as errors:
                parts = streamed(codec, config, codes, *(CHUNKS[1:2] if setup.is_small else CHUNKS))
            seams = max(float(np.abs(pcm - whole).max()) for pcm in parts)
        except torch.AcceleratorError:  # the device is unusable after this
            raise
        except Exception as error:
            yield {"graphs": graphs, "capture_errors": errors, **failure(error)}
            continue
        figures = {"graphs": graphs, "seams": seams, "from_cpu": from_cpu, "capture_errors": errors}
        yield figures | {"ok": seams <= EXACT and from_cpu <= ALIKE and not errors}


def _speed(setup: Setup, name: str) -> Iterator[dict[str, Any]]:
    """Measure how many real-time streams the decoder serves at each batch size, as wide as published."""
    batches, rounds = ((2,), 1) if setup.is_small else (BATCHES, 5)
    codec = make_codec(name, setup.device, setup.is_small)
    config = DecoderConfig(device=setup.device, max_batch=batches[-1], max_utterances=1024)
    for graphs in (False, True):
        with capture_errors() as errors:
            arm = Arm(codec, replace(config, graphs=graphs))
            for batch in batches:
                for _ in range(rounds if setup.is_small else WORTH_CAPTURING + rounds):
                    arm.run(batch, FRAMES)
                wall_s = statistics.median(arm.wall_s[-rounds:])
                streams = round(batch * FRAMES / codec.spec.frame_rate / wall_s, 1)
                ms = round(1e3 * wall_s, 3)
                yield {"graphs": graphs, "batch": batch, "ms": ms, "streams_real_time": streams}
            arm.stop()
        if errors:
            yield {"graphs": graphs, "capture_errors": errors, "ok": False}


def _narrow(setup: Setup, name: str) -> Iterator[dict[str, Any]]:
    """Measure the error of narrow types, relative to the root mean square of the exact samples."""
    codec = make_codec(name, setup.device, is_narrow=True)
    codes = codes_of(codec, 2, 50)
    config = DecoderConfig(device=setup.device, graphs=False, max_batch=16)
    (exact,) = streamed(codec, config, codes, 25)
    for dtype in ("bfloat16", "float16"):
        (near,) = streamed(codec, replace(config, dtype=dtype), codes, 25)
        error = float(np.sqrt(np.mean((near - exact) ** 2) / np.mean(exact**2)))
        yield {"dtype": dtype, "relative_error": error, "ok": bool(np.isfinite(near).all())}
