"""Measure the acoustic decoder on its own: the gain from batching, and the playback of many live streams.

    python -m benchmarks.decoder --streams 64 --frames 8
    python -m benchmarks.decoder --live 1 8 32 64 --seconds 10

The first form decodes one steady window of `--frames` frames for each of `--streams` utterances. It alternates between
decoding them one at a time and in batches. A figure is the median over the rounds. `speedup_over_one_at_a_time` is the
ratio of the wall times. `speedup_cpu` is the ratio of the processor times, which are less sensitive to other load.
`streams_real_time` is the number of streams that the batched decoder can serve in real time.

The second form plays live streams. Frames arrive at `--fps` (default: real time) and are sent to the decoder as the
chunk policy decides. Each player starts with the first chunk. Metrics are defined in benchmarks/README.md. With
`--clock processor`, time advances by the decoder's processor time, as if it had its own core. Other load on the machine
then does not affect the figures.

The bundled codec uses its trained weights. Other codecs have random weights and few channels, but the published strides
and kernels.
"""

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import append_result, command_line, median_ratio
from benchmarks.loads import Trace, percentiles, summarise, underrun_s
from lab.releases.every_codec import make_codec
from stretto.codecs.base import Codec, CodecSpec, Window
from stretto.config import DecoderConfig
from stretto.convert.make_repository import WARM_UP_S
from stretto.decoder.chunk_queue import ChunkAnswer, ChunkQueue, Counts, PendingChunk
from stretto.decoder.launching import make_launcher
from stretto.decoder.loop import DecodingLoop
from stretto.decoder.sessions import Sessions
from stretto.decoder.streaming import Windower
from stretto.decoder.worker import DecoderWorker
from stretto.marking.marker import Marker
from stretto.records.chunk import Chunk, Event
from stretto.streams.chunking import ChunkPolicy, DecodingTime, Pacer
from stretto.streams.layout import Segment
from stretto.triton_io.flow import FlowSlot, FlowTable


class RealTime:
    """A decoder thread that runs in real time."""

    def __init__(self, codec: Codec, config: DecoderConfig) -> None:
        self._worker = DecoderWorker(codec, config)
        self.now = time.monotonic
        self.push = self._worker.push

    def time(self) -> DecodingTime:
        """Return the decoding time, as the decoder has measured it."""
        return self._worker.time

    @property
    def has_graphs(self) -> bool:
        """True if chunks of usual sizes are decoded by CUDA graphs."""
        return self._worker.has_graphs

    def until(self, at: float) -> None:
        """Wait until `at`."""
        time.sleep(max(0.0, at - time.monotonic()))

    def close(self) -> None:
        """Stop the decoder's thread."""
        self._worker.stop()


class ProcessorTime:
    """A decoder whose clock advances by its processor time, as if it had its own core.

    Args:
        codec: Codec to decode with.
        config: Configuration of the decoder.
        stopwatch: Returns the processor time in seconds.
        marker: Marker of the samples, or None.

    Attributes:
        has_graphs: False, because it decodes on the host.
    """

    has_graphs = False

    def __init__(
        self,
        codec: Codec,
        config: DecoderConfig,
        stopwatch: Callable[[], float] = time.thread_time,
        marker: Marker | None = None,
    ) -> None:
        self._stopwatch = stopwatch
        self._queue = ChunkQueue()
        sessions = Sessions(codec, config.max_utterances, config.idle_timeout_s, self.now, marker=marker)
        self._loop = DecodingLoop(codec, config, self._queue, Counts(), sessions, make_launcher(codec, config))
        self._loop.clock = stopwatch
        self._loop.enter()
        self._now = self._free_at = 0.0
        self._turn_s: float | None = None  # stopwatch reading at the start of the current turn

    def now(self) -> float:
        return self._now if self._turn_s is None else self._free_at + self._stopwatch() - self._turn_s

    def time(self) -> DecodingTime:
        return self._loop.stopwatch.measured

    def push(self, utterance: str, chunk: Chunk, codes: np.ndarray, reply: ChunkAnswer) -> None:
        self._queue.put(PendingChunk(utterance, chunk, codes, reply))

    def until(self, at: float) -> None:
        """Advance the time to `at`.

        A turn that begins before `at` may end after it. Chunks that arrive meanwhile wait for the next turn.
        """
        self._free_at = max(self._free_at, self._now)
        while self._free_at < at and len(self._queue) + self._loop.num_jobs:
            self._turn_s = self._stopwatch()
            self._loop.turn()
            self._free_at = self.now()
            self._turn_s = None
        self._now = at

    def close(self) -> None:
        """Do nothing: there is no thread."""


class Stage(Protocol):
    """A decoder with a clock."""

    @property
    def has_graphs(self) -> bool:
        """True if chunks of usual sizes are decoded by CUDA graphs."""
        ...

    def now(self) -> float:
        """Return the time in seconds."""
        ...

    def until(self, at: float) -> None:
        """Decode until the time `at`."""
        ...

    def time(self) -> DecodingTime:
        """Return the decoding time, as the decoder has measured it."""
        ...

    def push(self, utterance: str, chunk: Chunk, codes: np.ndarray, reply: ChunkAnswer) -> None:
        """Queue a chunk."""
        ...


@dataclass(frozen=True)
class LiveLoad:
    """`streams` utterances of `seconds` each.

    Attributes:
        frames_per_s: Speed of the language model, which advances all streams together.
        stagger_s: Time over which the starts of the streams are spread.
    """

    streams: int
    seconds: float
    frames_per_s: float
    stagger_s: float = 1.0

    def starts(self) -> list[float]:
        """Return the times at which the streams start, in seconds, in ascending order."""
        return [self.stagger_s * index / self.streams for index in range(self.streams)]


@dataclass
class _Reply:
    """Reply that records when the samples of each chunk arrive."""

    stream: "Stream"
    sent_s: float
    cancelled: bool = field(default=False)
    host: str = ""
    wanted_s: float = 0.0

    def send(self, pcm: np.ndarray | None, event: Event) -> None:
        now = self.stream.stage.now()
        trace = self.stream.trace
        if pcm is not None:
            trace.add(now, pcm, event["sample_rate"])
            self.stream.slot.note_latency(now - max(self.sent_s, self.wanted_s))
        if event["is_final"]:
            self._end()

    def fail(self, error: Exception) -> None:
        self.stream.trace.error = repr(error)
        self._end()

    def _end(self) -> None:
        """Release the slot, as the language model does once all chunks are answered."""
        if self.stream.trace.finished is None:
            self.stream.trace.finished = self.stream.stage.now()
            self.stream.slot.release()

    def is_cancelled(self) -> bool:
        return self.cancelled


class Stream:
    """One utterance, which sends frames as the engine's `Utterance` does and records its client's trace."""

    def __init__(self, name: str, codes: np.ndarray, slot: FlowSlot, policy: ChunkPolicy, stage: Stage) -> None:
        self.slot = slot
        self.stage = stage
        self.sizes: list[int] = []
        self.trace = Trace(stage.now())
        self._name = name
        self._codes = codes
        self._pacer = Pacer(policy, lambda: slot.load, stage.now, note_gap=slot.note_gap)
        self._num_ready = self._num_sent = 0

    def step(self) -> bool:
        """Add a frame; return True if more follow."""
        self._num_ready += 1
        self.slot.begin_speech()
        is_last = self._num_sent + self._num_ready == self._codes.shape[1]
        while not is_last and (size := self._pacer.num_to_send(self._num_ready)):
            self._send(size, False)
        if is_last:
            self._send(self._num_ready, True)
        return not is_last

    def _send(self, size: int, is_final: bool) -> None:
        codes = self._codes[:, self._num_sent : self._num_sent + size]
        chunk = Chunk(len(self.sizes), Segment.AUDIO, is_final=is_final)
        self.slot.set_time(self.stage.time(), self.stage.has_graphs)
        self.stage.push(self._name, chunk, codes, _Reply(self, self.stage.now()))
        self.sizes.append(size)
        self._num_sent += size
        self._num_ready -= size


class LiveStreams:
    """Player of loads on a stage, which records their traces."""

    def __init__(self, stage: Stage, spec: CodecSpec, codes: np.ndarray, table: FlowTable) -> None:
        self._stage = stage
        self._spec = spec
        self._codes = codes
        self._table = table
        self._num_runs = 0

    def run(self, load: LiveLoad, policy: ChunkPolicy) -> tuple[list[Trace], list[int], float]:
        """Play a load; return its traces, all chunk sizes and its duration in seconds."""
        self._num_runs += 1
        stage = self._stage
        begun = self._stage.now()
        tick = 0
        starts = [begun + start for start in load.starts()]
        streams: list[Stream] = []
        active: list[Stream] = []
        while len(streams) < load.streams or active:
            tick += 1
            stage.until(begun + tick / load.frames_per_s)
            while len(streams) < load.streams and starts[len(streams)] <= stage.now():
                active.append(self._start(load, len(streams), policy))
                streams.append(active[-1])
            active = [stream for stream in active if stream.step()]
        limit = stage.now() + 60
        while any(stream.trace.finished is None for stream in streams) and stage.now() < limit:
            stage.until(stage.now() + 0.02)
        sizes = [size for stream in streams for size in stream.sizes]
        return [stream.trace for stream in streams], sizes, stage.now() - begun

    def _start(self, load: LiveLoad, index: int, policy: ChunkPolicy) -> Stream:
        num_frames = max(2, round(load.seconds * self._spec.frame_rate))
        codes = np.roll(self._codes, index, axis=1)
        codes = np.tile(codes, -(-num_frames // codes.shape[1]))[:, :num_frames]
        return Stream(f"{self._num_runs}.{index}", codes, self._table.claim(), policy, self._stage)


def random_codes(codec: Codec, batch: int, frames: int, seed: int = 0) -> Tensor:
    """Return random codes [B, K, T]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(codec.spec.codebook_size or 1, (batch, codec.spec.num_codebooks, frames), generator=generator)


def stream(codec: Codec, codes: Tensor, sizes: Iterable[int]) -> Tensor:
    """Decode codes [B, K, T] that arrive in chunks of the given sizes; return the samples [B, n].

    The rows of the batch arrive together and are decoded as one batch. The last chunk is cut at the end of `codes`.
    """
    batch, _, total = codes.shape
    windowers = [Windower(codec.spec) for _ in range(batch)]
    state = codec.initial_state(batch)
    parts = []
    start = 0
    for size in sizes:
        stop = min(start + size, total)
        pushed = [w.push(row[:, start:stop].numpy(), stop == total) for w, row in zip(windowers, codes, strict=True)]
        windows = [window for window in pushed if window is not None]
        if windows:
            assert len(windows) == batch
            stacked = Window(
                codes=torch.stack([torch.from_numpy(window.codes) for window in windows]),
                left=windows[0].left,
                right=windows[0].right,
                first=torch.tensor([window.first for window in windows]),
                state=state,
            )
            pcm, state = codec.decode(stacked)
            assert pcm.shape == (batch, codec.spec.num_samples(windows[0].num_frames, windows[0].right))
            parts.append(pcm)
        start = stop
        if start == total:
            break
    assert start == total
    return torch.cat(parts, dim=1)


def chunks_of(size: int, total: int) -> list[int]:
    """Return equal chunk sizes for at least `total` frames; the last chunk may be shorter than its size."""
    return [size] * -(-total // size)


# ----- the benchmark


class CountingReply:
    """Reply that counts the answers to `number` chunks."""

    host = ""
    wanted_s = 0.0

    def __init__(self, number: int) -> None:
        self.errors: list[Exception] = []
        self._left = number
        self._counting = threading.Lock()
        self._all = threading.Event()

    def send(self, pcm: np.ndarray | None, event: Event) -> None:
        self._count()

    def fail(self, error: Exception) -> None:
        self.errors.append(error)
        self._count()

    def is_cancelled(self) -> bool:
        return False

    def wait(self) -> None:
        """Wait until every chunk is answered; raise the error of one that failed."""
        self._all.wait()
        if self.errors:
            raise self.errors[0]

    def _count(self) -> None:
        with self._counting:
            self._left -= 1
            if self._left == 0:
                self._all.set()


class Arm:
    """A decoder, and the wall and processor times of its runs in seconds."""

    def __init__(self, codec: Codec, config: DecoderConfig) -> None:
        self._codec = codec
        self._worker = DecoderWorker(codec, config)
        self._num_runs = 0
        self.wall_s: list[float] = []
        self.cpu_s: list[float] = []

    def run(self, streams: int, frames: int) -> None:
        """Decode two steady windows of `frames` frames for each of `streams` utterances; time the second."""
        self._num_runs += 1
        spec = self._codec.spec
        start = spec.left_frames + frames + spec.right_frames
        codes = random_codes(self._codec, 1, start + 3 * frames)[0].numpy()
        parts = np.split(codes, [start, start + frames, start + 2 * frames], axis=1)
        for index, part_of_codes in enumerate(parts):
            wall_s = time.perf_counter()
            cpu_s = time.process_time()
            reply = CountingReply(streams)
            for stream in range(streams):
                chunk = Chunk(index, Segment.AUDIO, is_final=index == len(parts) - 1)
                self._worker.push(f"{self._num_runs}.{stream}", chunk, part_of_codes, reply)
            reply.wait()
            if index == 2:
                self.wall_s.append(time.perf_counter() - wall_s)
                self.cpu_s.append(time.process_time() - cpu_s)

    def wait_until_warm(self) -> None:
        """Wait until the decoder has started; raise the error if it failed."""
        self._worker.wait_until_warm()

    def stop(self) -> None:
        """Stop the decoder's thread."""
        self._worker.stop()


def measure_batching(codec: Codec, config: DecoderConfig, streams: int, frames: int, rounds: int) -> dict[str, Any]:
    """Return figures on how much faster windows are decoded in batches than one at a time."""
    alone = Arm(codec, DecoderConfig(**asdict(config) | {"max_batch": 1}))
    together = Arm(codec, config)
    for turn in range(rounds + 1):
        for arm in (alone, together):
            arm.run(streams, frames)
            if not turn:
                arm.wall_s.clear()
                arm.cpu_s.clear()
    for arm in (alone, together):
        arm.stop()
    wall_s = statistics.median(together.wall_s)
    cpu_s = statistics.median(together.cpu_s)
    return {
        "streams": streams,
        "frames": frames,
        "speedup_over_one_at_a_time": round(median_ratio(alone.wall_s, together.wall_s), 3),
        "speedup_cpu": round(median_ratio(alone.cpu_s, together.cpu_s), 3),
        "window_ms": round(1e3 * wall_s / streams, 3),
        "window_cpu_ms": round(1e3 * cpu_s / streams, 3),
        "frames_per_cpu_s": round(streams * frames / cpu_s, 1),
        "streams_real_time": round(streams * frames / codec.spec.frame_rate / wall_s, 2),
    }


def measure_live(live: LiveStreams, load: LiveLoad, policy: ChunkPolicy) -> dict[str, Any]:
    """Play one load and return its figures."""
    cpu_s = time.process_time()
    traces, sizes, wall_s = live.run(load, policy)
    failed = [trace.error for trace in traces if trace.error]
    waits = [max(0.0, underrun_s(trace) - policy.playout_s) for trace in traces]
    return {
        "streams": load.streams,
        "frames_per_s": load.frames_per_s,
        **asdict(policy),
        "failed": len(failed),
        **percentiles("underrun_after_playout", waits),
        "underrun_after_playout_max": round(max(waits), 5),
        "chunk_frames_mean": round(statistics.mean(sizes), 2),
        "cpu_share": round((time.process_time() - cpu_s) / wall_s, 3),
        **summarise(traces, wall_s),
    }


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = command_line(
        __doc__,
        "decoder",
        codec=("tiny", "tiny, or a name in random_codecs.py"),
        device=("cpu", "torch device"),
        threads=(1, "number of torch threads on the CPU"),
        max_batch=(int, "windows per batch; default: 16 on the CPU, 64 on a GPU"),
        streams=(64, "utterances"),
        frames=(8, "frames per window"),
        rounds=(9, "number of turns for each arm"),
        fps=(float, "frames per second of each live stream"),
        seconds=(10.0, "seconds of audio in a live stream"),
        first=(4, "`first_frames` of the chunk policy"),
        steady=(25, "steady_frames of the chunk policy"),
        playout=(0.0, "playout_s of the chunk policy"),
    )
    parser.add_argument("--wide", action="store_true", help="use the published number of channels")
    parser.add_argument("--convolutions", default="float32", choices=DecoderConfig.CONVOLUTIONS)
    parser.add_argument("--no-graphs", action="store_true", help="do not use CUDA graphs")
    parser.add_argument("--live", type=int, nargs="+", metavar="STREAMS", help="numbers of live streams to play")
    parser.add_argument("--clock", choices=["wall", "processor"], default="wall", help="clock of live streams")
    return parser.parse_args(argv)


def main(arguments: argparse.Namespace) -> None:
    """Measure one codec and write a line for each measurement."""
    codec = make_codec(arguments.codec, arguments.device, not arguments.wide)
    config = DecoderConfig(
        device=arguments.device,
        convolutions=arguments.convolutions,
        graphs=not arguments.no_graphs,
        threads=arguments.threads,
        max_batch=arguments.max_batch or (64 if torch.device(arguments.device).type == "cuda" else 16),
        max_utterances=4096,
        warm_up_s=WARM_UP_S,
    )
    about = {"codec": arguments.codec, "wide": arguments.wide, "device": arguments.device}
    about |= {
        "convolutions": config.convolutions,
        "graphs": config.graphs,
        "threads": config.threads,
        "max_batch": config.max_batch,
    }
    if arguments.live is None:
        figures = measure_batching(codec, config, arguments.streams, arguments.frames, arguments.rounds)
        append_result(arguments.out, "decoder_batching", about | figures)
        return
    spec = codec.spec
    policy = ChunkPolicy(
        arguments.first, arguments.steady, arguments.playout, frame_rate=spec.frame_rate, held_frames=spec.right_frames
    )
    torch.set_num_threads(config.threads)
    stage = (RealTime if arguments.clock == "wall" else ProcessorTime)(codec, config)
    with tempfile.TemporaryDirectory() as folder:
        table = FlowTable.create(0, directory=Path(folder))
        table.clock = stage.now
        live = LiveStreams(stage, spec, random_codes(codec, 1, 1000)[0].numpy(), table)
        live.run(LiveLoad(2, 2.0, 2 * spec.frame_rate), policy)  # warms up
        for streams in arguments.live:
            load = LiveLoad(streams, arguments.seconds, arguments.fps or spec.frame_rate)
            figures = {"clock": arguments.clock} | measure_live(live, load, policy)
            append_result(arguments.out, "decoder_live", about | figures)
        table.remove()
    stage.close()


if __name__ == "__main__":
    main(parse())
