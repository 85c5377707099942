"""Predict the waits of first chunks on a GPU: the decoder's own scheduling, on a virtual clock.

    python -m benchmarks.gpu.queue_model

Nothing is decoded. A batch takes `batch_ms` and `frame_ms` for each frame that it computes, with the rows that a graph
adds. Batches of two CUDA streams share the GPU: while both compute, each takes twice as long. Requests arrive at random
times from a fixed seed, and all running replies get a frame in each step of the language model. A wait lasts from a
chunk's last frame to its samples.
"""

import argparse
import random
import tempfile
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.decoder import LiveLoad, LiveStreams
from benchmarks.harness import append_result, command_line
from stretto.codecs.base import CodecSpec, Stateful, Window
from stretto.config import DecoderConfig
from stretto.decoder.chunk_queue import ChunkAnswer, ChunkQueue, Counts, PendingChunk
from stretto.decoder.launching import CudaLauncher, Flight, State
from stretto.decoder.loop import DecodingLoop
from stretto.decoder.sessions import Sessions
from stretto.decoder.windows import FrameWindow
from stretto.decoding.graphs import padded_batch
from stretto.records.chunk import Chunk
from stretto.streams.chunking import ChunkPolicy, DecodingTime
from stretto.triton_io.flow import FlowTable
from stretto_client.capacity.traces import Trace, percentiles, underrun_s

SPEC = CodecSpec("virtual", 24_000, 1920, 16, 2048, Stateful())  # of Qwen3-TTS's codec
SHORTEST_S = 1e-9  # left of a batch that has ended, after rounding


@dataclass(frozen=True)
class Gpu:
    """Times of a codec on a GPU; the defaults are a fit of the lines measured on an H100, in float32."""

    batch_ms: float = 4.4
    frame_ms: float = 0.26


@dataclass(frozen=True)
class RandomLoad(LiveLoad):
    """Load whose streams start at random times, `rate` in a second on average."""

    rate: float = 20.0
    seed: int = 0

    def starts(self) -> list[float]:
        """Return the times at which the streams start, in seconds, in ascending order."""
        numbers = random.Random(self.seed)
        starts = list[float]()
        now = 0.0
        for _ in range(self.streams):
            now += numbers.expovariate(self.rate)
            starts.append(now)
        return starts


@dataclass(eq=False)
class VirtualBatch:
    """Batch on a stream of the virtual GPU.

    Attributes:
        left_s: Device time that it still needs if it has the GPU to itself.
    """

    left_s: float
    took_s: float = 0.0


class VirtualLauncher:
    """Launcher of batches that take no time but the virtual one; batches of a stream run in order."""

    has_graphs = True
    has_first_lane = True
    depth = CudaLauncher.depth
    batch_s = CudaLauncher.batch_s
    fills_spare_time = CudaLauncher.fills_spare_time

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._queues = [deque[VirtualBatch](), deque[VirtualBatch]()]
        self.now = 0.0

    def enter(self) -> None:
        """Do nothing."""

    def initial_state(self) -> State:
        return Tensor()

    def capture(self, windows: Sequence[FrameWindow], is_first: bool = False) -> bool:
        """Return True; nothing is captured."""
        return True

    def launch(self, windows: Sequence[FrameWindow], states: Sequence[State], is_first: bool = False) -> Flight:
        num_frames = windows[0].num_frames
        num_computed = padded_batch(len(windows)) * num_frames
        batch = VirtualBatch((self._gpu.batch_ms + num_computed * self._gpu.frame_ms) / 1e3)
        self._queues[is_first].append(batch)
        pcm = np.full((len(windows), SPEC.num_samples(num_frames, 0)), 0.1, np.float32)
        return Flight(states, lambda: pcm, None, lambda: batch.took_s, lambda: batch.left_s == 0)

    @property
    def is_idle(self) -> bool:
        return not any(self._queues)

    def advance(self, until: float) -> None:
        """Compute until this time, in seconds."""
        while running := [queue[0] for queue in self._queues if queue]:
            needed_s = len(running) * min(batch.left_s for batch in running)
            step_s = min(until - self.now, needed_s)
            self.now += step_s
            for batch in running:
                batch.took_s += step_s
                batch.left_s -= step_s / len(running)
            for queue in self._queues:
                if queue and queue[0].left_s < SHORTEST_S:
                    queue.popleft().left_s = 0.0
            if step_s < needed_s:
                break
        self.now = until


class VirtualQueue(ChunkQueue):
    """Queue whose consumer waits on the virtual clock."""

    def __init__(self, launcher: VirtualLauncher) -> None:
        super().__init__()
        self._launcher = launcher

    def next_chunks(self, timeout_s: float, busy: Collection[str] = ()) -> tuple[list[PendingChunk], list[str]]:
        """Return the next chunks, as `ChunkQueue.next_chunks` does; nothing arrives during a wait."""
        if not self._free(busy) and not self._launcher.is_idle:
            self._launcher.advance(self._launcher.now + timeout_s)
        return super().next_chunks(0.0, busy)


class VirtualCodec:
    """Codec that is never called."""

    spec = SPEC

    def initial_state(self, batch: int) -> Tensor:
        return torch.zeros(batch, 0)

    def decode(self, window: Window) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def encode(self, pcm: np.ndarray) -> np.ndarray:
        raise NotImplementedError


class VirtualStage:
    """The decoder's loop on a virtual GPU.

    Attributes:
        begun_s: Time at which each utterance sent its first chunk, in seconds.
    """

    has_graphs = True

    def __init__(self, gpu: Gpu, policy: ChunkPolicy) -> None:
        codec = VirtualCodec()
        config = DecoderConfig(
            max_utterances=4096, max_batch=64, first_frames=policy.first_frames, steady_frames=policy.steady_frames
        )
        self.begun_s: dict[str, float] = {}
        self._launcher = VirtualLauncher(gpu)
        self._queue = VirtualQueue(self._launcher)
        sessions = Sessions(codec, config.max_utterances, config.idle_timeout_s, self.now)
        self._loop = DecodingLoop(codec, config, self._queue, Counts(), sessions, self._launcher)

    def now(self) -> float:
        return self._launcher.now

    def time(self) -> DecodingTime:
        return self._loop.stopwatch.measured

    def push(self, utterance: str, chunk: Chunk, codes: np.ndarray, reply: ChunkAnswer) -> None:
        self.begun_s.setdefault(utterance, self.now())
        self._queue.put(PendingChunk(utterance, chunk, codes, reply))

    def until(self, at: float) -> None:
        """Advance the time to `at`; the last look at a batch may be LOOK_S later."""
        while self.now() < at and (self._loop.unanswered or len(self._queue)):
            self._loop.turn()
        self._launcher.advance(max(at, self.now()))


@dataclass(frozen=True)
class Played:
    """Reply of a load on a virtual GPU.

    Attributes:
        wait_s: Time between its first chunk and the samples, in seconds.
    """

    trace: Trace
    wait_s: float

    @property
    def first_frames(self) -> int:
        return round(self.trace.durations[0] * SPEC.frame_rate)


def play(gpu: Gpu, load: RandomLoad, policy: ChunkPolicy) -> list[Played]:
    """Play a load on a virtual GPU and return its replies, in the order of their starts."""
    stage = VirtualStage(gpu, policy)
    with tempfile.TemporaryDirectory() as folder:
        table = FlowTable.create(0, num_slots=4096, directory=Path(folder))
        table.clock = stage.now
        codes = np.zeros((SPEC.num_codebooks, 1), np.int32)
        traces, _, _ = LiveStreams(stage, SPEC, codes, table).run(load, policy)
        table.remove()
    begun = stage.begun_s.values()
    return [Played(trace, trace.arrivals[0] - begun_s) for trace, begun_s in zip(traces, begun, strict=True)]


# ----- the table of docs/gpu.md

# Rate in 1/s, duration of a reply in seconds, and duration of a step of the language model in milliseconds
LOADS = ((1.0, 4.4, 6.0), (10.0, 4.4, 8.0), (20.0, 4.4, 12.0), (20.0, 8.0, 16.0))


def measure(gpu: Gpu, load: RandomLoad, policy: ChunkPolicy) -> dict[str, float]:
    """Return the figures of a load, without its first quarter, in which the number of replies grows."""
    replies = play(gpu, load, policy)[load.streams // 4 :]
    return {
        "rate": load.rate,
        "reply_s": load.seconds,
        "step_ms": round(1e3 / load.frames_per_s, 3),
        "requests": len(replies),
        **percentiles("first_wait", [reply.wait_s for reply in replies]),
        **percentiles("first_frames", [reply.first_frames for reply in replies]),
        **percentiles("first_audio", [reply.trace.first_s for reply in replies]),
        "underrun_max": round(max(underrun_s(reply.trace) for reply in replies), 5),
    }


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    return command_line(
        __doc__,
        "gpu_queue_model",
        batch_ms=(Gpu.batch_ms, "milliseconds of a batch besides its frames"),
        frame_ms=(Gpu.frame_ms, "milliseconds of a frame"),
        first=(1, "`first_frames` of the chunk policy"),
        steady=(12, "`steady_frames` of the chunk policy"),
        seconds=(60.0, "seconds in which requests arrive"),
        seed=(0, "seed of the arrivals"),
    ).parse_args(argv)


def main(arguments: argparse.Namespace) -> None:
    gpu = Gpu(arguments.batch_ms, arguments.frame_ms)
    policy = ChunkPolicy(arguments.first, arguments.steady, frame_rate=SPEC.frame_rate)
    for rate, reply_s, step_ms in LOADS:
        num_replies = round(rate * arguments.seconds)
        load = RandomLoad(num_replies, reply_s, 1e3 / step_ms, rate=rate, seed=arguments.seed)
        append_result(arguments.out, "gpu_queue_model", {**asdict(gpu), **measure(gpu, load, policy)})


if __name__ == "__main__":
    main(parse())
