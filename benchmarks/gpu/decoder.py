"""Jobs that measure a codec on the device: memory, exactness with and without graphs, other convolutions, and speed."""

import itertools
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks.decoder import Arm
from benchmarks.decoder_memory import CHUNKS as CHUNKS_OF
from benchmarks.decoder_memory import MAX_BATCH, MAX_UTTERANCES
from benchmarks.gpu.jobs import Setup, failure
from benchmarks.gpu.launches import launcher_of, time_batch
from lab.releases.every_codec import every_codec, make_codec
from stretto.codecs.base import Codec
from stretto.config import DecoderConfig
from stretto.decoder.memory import measure
from stretto.decoder.worker import DecoderWorker
from stretto.decoding.convolutions import check_mode
from stretto.errors import CheckpointError
from stretto.records.chunk import Chunk, Event
from stretto.streams.layout import Segment
from stretto.testing.codec_streams import random_codes, stream

CHUNKS = (2, 5, 25)
# tolerances: streamed against one-shot decode on the device; device against CPU
EXACT = 1e-5
ALIKE = 1e-3
# windows at once, and frames per window: first chunks have 1 or 2, others of Qwen3-TTS and Mimi up to 12
BATCHES = (1, 4, 16)
FRAMES = (1, 2, 12)
PATIENCE_S = 120.0


class Listener:
    """Reply that collects the samples of one utterance."""

    host = ""
    wanted_s = 0.0

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
        if not self.over.wait(PATIENCE_S):
            raise TimeoutError(f"an utterance has not ended after {PATIENCE_S:.0f} s")
        if self.error is not None:
            raise self.error
        return np.concatenate(self.parts)


class CaptureErrors(logging.Handler):
    """Log handler that collects the decoder's messages about shapes that could not be captured."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.errors: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        self.errors.append(f"{record.getMessage()}: {type(error).__name__}: {error}"[:500])


@contextmanager
def capture_errors() -> Iterator[list[str]]:
    """Yield the capture errors of decoders that run during the `with` block."""
    handler = CaptureErrors()
    logger = logging.getLogger("stretto.decoding.graphs")
    logger.addHandler(handler)
    try:
        yield handler.errors
    finally:
        logger.removeHandler(handler)


def streamed(codec: Codec, config: DecoderConfig, codes: np.ndarray, *sizes: int) -> list[np.ndarray]:
    """Decode codes [B, K, T] once per chunk size, in one worker; return the samples [B, n] of each."""
    worker = DecoderWorker(codec, config)
    try:
        return [_stream(worker, codes, size) for size in sizes]
    finally:
        worker.stop()


def _stream(worker: DecoderWorker, codes: np.ndarray, size: int) -> np.ndarray:
    """Decode codes [B, K, T] in chunks of `size`, all utterances together; return the samples [B, n]."""
    listeners = [Listener() for _ in codes]
    starts = range(0, codes.shape[2], size)
    for index, start in enumerate(starts):
        chunk = Chunk(index, Segment.AUDIO, is_final=index == len(starts) - 1)
        for row, listener in enumerate(listeners):
            worker.push(f"{size}-{row}", chunk, codes[row, :, start : start + size], listener)
    return np.stack([listener.pcm() for listener in listeners])


def run(setup: Setup, name: str) -> Iterator[dict[str, Any]]:
    """Yield result lines of a codec: its memory, its exactness without and with graphs, and its speed."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    parts = (_memory, _exactness, run_speed)
    for lines_of in parts:
        for figures in lines_of(setup, name):
            yield {"codec": name, "what": lines_of.__name__.strip("_"), **figures}


def _memory(setup: Setup, name: str) -> Iterator[dict[str, Any]]:
    """Compare the memory of a decoder of published size, as it is served, with the computed one."""
    codec_name = name.removesuffix("_24khz")
    first, steady = CHUNKS_OF[codec_name]
    config = DecoderConfig(
        device=setup.device,
        max_batch=MAX_BATCH,
        max_utterances=MAX_UTTERANCES,
        first_frames=first,
        steady_frames=steady,
    )
    computed = measure(every_codec(codec_name, is_narrow=setup.is_small), config)
    limit = 0 if setup.is_small else 1 + (computed.tensors >> 20)
    before = setup.free_mib()
    arm = Arm(make_codec(name, setup.device, setup.is_small), replace(config, memory_mb=limit))
    arm.wait_until_warm()
    for frames in (first, steady):
        arm.run(2 if setup.is_small else 32, frames)
    used = before - setup.free_mib()
    arm.stop()
    figures = {"used_mib": used, "computed_mib": computed.total >> 20, "limit_mib": limit}
    yield figures | {"tensors_mib": setup.torch_mib(), "ok": used <= computed.total >> 20}


def _exactness(setup: Setup, name: str) -> Iterator[dict[str, Any]]:
    codec = make_codec(name, setup.device, is_narrow=True)
    codes = random_codes(codec, 2 if setup.is_small else 12, 30 if setup.is_small else 250)
    both = codec, make_codec(name, "cpu", is_narrow=True)
    whole, reference = (stream(either, codes, [codes.shape[2]]).float().cpu().numpy() for either in both)
    from_cpu = float(np.abs(whole - reference).max())
    for graphs in (False, True):
        config = DecoderConfig(device=setup.device, graphs=graphs, max_batch=16)
        try:
            with capture_errors() as errors:
                parts = streamed(codec, config, codes.numpy(), *(CHUNKS[1:2] if setup.is_small else CHUNKS))
            seams = max(float(np.abs(pcm - whole).max()) for pcm in parts)
        except torch.AcceleratorError:  # the device is unusable after this error
            raise
        except Exception as error:
            yield {"graphs": graphs, "capture_errors": errors, **failure(error)}
            continue
        figures = {"graphs": graphs, "seams": seams, "from_cpu": from_cpu, "capture_errors": errors}
        yield figures | {"ok": seams <= EXACT and from_cpu <= ALIKE and not errors}


def modes_of(codec: Codec) -> list[str]:
    """Return the modes of convolutions that change something in a codec, after `float32`."""

    def changes(mode: str) -> bool:
        try:
            check_mode(codec, mode)
        except CheckpointError:
            return False
        return True

    return [mode for mode in DecoderConfig.CONVOLUTIONS if changes(mode)]


def run_speed(setup: Setup, name: str) -> Iterator[dict[str, Any]]:
    """Yield a line for each kind of convolutions, batch and window: the times of a batch, and its error.

    The error is the rms of the differences from samples in float32, relative to the rms of these. `is_alike` is True if
    the first window has the same bits as in the largest batch.
    """
    codec = make_codec(name, setup.device, setup.is_small)
    exact = dict[tuple[int, int], np.ndarray]()
    for convolutions in modes_of(codec):
        config = DecoderConfig(device=setup.device, max_batch=BATCHES[-1], convolutions=convolutions)
        in_largest = dict[int, np.ndarray]()
        with capture_errors() as errors, launcher_of(codec, config) as launcher:
            for batch, frames in itertools.product(BATCHES[::-1], FRAMES[::-1]):
                timing = time_batch(launcher, codec, batch, frames, rounds=1 if setup.is_small else 9)
                reference = exact.setdefault((batch, frames), timing.pcm)
                alone = in_largest.setdefault(frames, timing.pcm[0])
                error = np.sqrt(np.mean((timing.pcm - reference) ** 2) / np.mean(reference**2))
                yield {
                    "codec": name,
                    "what": "speed",
                    "convolutions": convolutions,
                    "batch": batch,
                    "frames": frames,
                    "ms": round(1e3 * timing.wall_s, 3),
                    "device_ms": round(1e3 * timing.device_s, 3),
                    "streams_real_time": round(batch * frames / codec.spec.frame_rate / timing.wall_s, 1),
                    "relative_error": float(error),
                    "is_alike": np.array_equal(timing.pcm[0], alone),
                }
        if errors:
            yield {"codec": name, "what": "speed", "convolutions": convolutions, "capture_errors": errors, "ok": False}
