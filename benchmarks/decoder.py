"""The acoustic decoder alone: gain of batching, and playback of many live streams.

    python -m benchmarks.decoder --streams 64 --frames 8
    python -m benchmarks.decoder --live 1 8 32 64 --seconds 10

The first form decodes the same steady windows of `--frames` frames, one for each of `--streams` utterances, alternately
one at a time and in batches; a figure is the median over the rounds. `speedup_over_one_at_a_time` is the ratio of their
wall times, `speedup_cpu` that of their processor times, which a busy machine disturbs less. `streams_real_time` is the
number of streams that the batched decoder can serve in real time.

The second form plays live streams: frames arrive at `--fps` (default: real time), are sent as the chunk policy decides,
and are played by players that start with the first chunk. Metrics are defined in benchmarks/README.md. With `--clock
processor` time advances by the processor time of the decoder, as if it had its own core, so that other load on the
machine does not affect the figures.

The bundled codec has its own weights. Other codecs have random weights, with few channels but the published strides and
kernels.
"""

import argparse
import statistics
import tempfile
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import CHECKPOINT, append_result, command_line, median_ratio
from benchmarks.live_streams import LiveLoad, LiveStreams, ProcessorTime, RealTime
from benchmarks.loads import percentiles, summarise, underrun_s
from stretto.codecs.base import Codec
from stretto.codecs.registry import load_codec
from stretto.config import DecoderConfig
from stretto.convert.make_repository import WARM_UP_S
from stretto.decoder.launching import WORTH_CAPTURING
from stretto.decoder.worker import DecoderWorker
from stretto.records.chunk import Chunk
from stretto.records.event import Event
from stretto.streams.chunking import ChunkPolicy
from stretto.streams.layout import Segment
from stretto.triton_io.flow import FlowTable


def make_codec(name: str, device: str, is_narrow: bool) -> Codec:
    """Return the bundled codec, or one of `random_codecs.py` or `random_stateful.py` with random weights."""
    if name == "tiny":
        return load_codec(name, CHECKPOINT, device)
    from benchmarks.checkpoints.random_codecs import (  # needs transformers, unlike the bundled codec
        codec_of,
        write_checkpoint,
    )
    from benchmarks.checkpoints.random_stateful import STATEFUL, make_stateful

    if name in STATEFUL:
        return make_stateful(name, is_narrow, device=device)
    with tempfile.TemporaryDirectory() as folder:
        return load_codec(codec_of(name), write_checkpoint(name, Path(folder) / "codec", is_narrow).parent, device)


def random_codes(codec: Codec, num_frames: int) -> np.ndarray:
    """Return random codes [K, T], int32."""
    spec = codec.spec
    return np.random.default_rng(0).integers(0, spec.codebook_size, (spec.num_codebooks, num_frames), np.int32)


class CountingReply:
    """Reply that counts the answers to `number` chunks."""

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
    """A decoder and the time it took: wall time and processor time in seconds."""

    def __init__(self, codec: Codec, config: DecoderConfig) -> None:
        self._codec = codec
        self._worker = DecoderWorker(codec, config)
        self._num_runs = 0
        self.wall_s: list[float] = []
        self.cpu_s: list[float] = []

    def run(self, streams: int, frames: int) -> None:
        """Decode two steady windows of `frames` frames of each of `streams` utterances, and time the second."""
        self._num_runs += 1
        spec = self._codec.spec
        start = spec.left_frames + frames + spec.right_frames
        codes = random_codes(self._codec, start + 3 * frames)
        parts = np.split(codes, [start, start + frames, start + 2 * frames], axis=1)
        for index, part in enumerate(parts):
            wall_s, cpu_s = time.perf_counter(), time.process_time()
            reply = CountingReply(streams)
            for stream in range(streams):
                chunk = Chunk(index, Segment.AUDIO, is_final=index == len(parts) - 1)
                self._worker.push(f"{self._num_runs}.{stream}", chunk, part, reply)
            reply.wait()
            if index == 2:
                self.wall_s.append(time.perf_counter() - wall_s)
                self.cpu_s.append(time.process_time() - cpu_s)

    def stop(self) -> None:
        """Stop the decoder's thread."""
        self._worker.stop()


def measure_batching(codec: Codec, config: DecoderConfig, streams: int, frames: int, rounds: int) -> dict[str, Any]:
    """Return how much faster windows decode in batches than one at a time."""
    alone = Arm(codec, DecoderConfig(**asdict(config) | {"max_batch": 1}))
    together = Arm(codec, config)
    warm_up = 1 if torch.device(config.device).type == "cpu" else WORTH_CAPTURING  # to capture all graphs
    for turn in range(rounds + warm_up):
        for arm in (alone, together):
            arm.run(streams, frames)
            if turn < warm_up:
                arm.wall_s.clear()
                arm.cpu_s.clear()
    for arm in (alone, together):
        arm.stop()
    wall_s, cpu_s = statistics.median(together.wall_s), statistics.median(together.cpu_s)
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
        codec=("tiny", "tiny, or a name in random_codecs.py or random_stateful.py"),
        device=("cpu", "device of torch"),
        threads=(1, "threads of torch, on the CPU"),
        max_batch=(int, "windows at once; default 16 on the CPU, 64 on a GPU"),
        streams=(64, "utterances"),
        frames=(8, "frames of a window"),
        rounds=(9, "turns of each arm"),
        fps=(float, "frames per second of each live stream"),
        seconds=(10.0, "seconds of audio in a live stream"),
        first=(4, "first_frames of the chunk policy"),
        steady=(25, "steady_frames of the chunk policy"),
        playout=(0.0, "playout_s of the chunk policy"),
    )
    parser.add_argument("--wide", action="store_true", help="as many channels as published")
    parser.add_argument("--dtype", default="float32", choices=DecoderConfig.DTYPES)
    parser.add_argument("--no-graphs", action="store_true", help="without CUDA graphs")
    parser.add_argument("--live", type=int, nargs="+", metavar="STREAMS", help="numbers of live streams to play")
    parser.add_argument("--clock", choices=["wall", "processor"], default="wall", help="clock of live streams")
    return parser.parse_args(argv)


def main(arguments: argparse.Namespace) -> None:
    """Measure one codec and write a line for each measurement."""
    codec = make_codec(arguments.codec, arguments.device, not arguments.wide)
    config = DecoderConfig(
        device=arguments.device,
        dtype=arguments.dtype,
        graphs=not arguments.no_graphs,
        threads=arguments.threads,
        max_batch=arguments.max_batch or (64 if torch.device(arguments.device).type == "cuda" else 16),
        max_utterances=4096,
        warm_up_s=WARM_UP_S,
    )
    about = {"codec": arguments.codec, "wide": arguments.wide, "device": arguments.device, "dtype": arguments.dtype}
    about |= {"graphs": config.graphs, "threads": config.threads, "max_batch": config.max_batch}
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
        live = LiveStreams(stage, spec, random_codes(codec, 1000), table)
        live.run(LiveLoad(2, 2.0, 2 * spec.frame_rate), policy)  # warms up
        for streams in arguments.live:
            load = LiveLoad(streams, arguments.seconds, arguments.fps or spec.frame_rate)
            figures = {"clock": arguments.clock} | measure_live(live, load, policy)
            append_result(arguments.out, "decoder_live", about | figures)
        table.remove()
    stage.close()


if __name__ == "__main__":
    main(parse())
