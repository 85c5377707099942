"""Underruns of many live streams on a decoder whose decode times follow a formula."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.decoder import LiveLoad, LiveStreams
from stretto.codecs.base import CodecSpec, Stateful, Window, Windowed
from stretto.config import DecoderConfig
from stretto.decoder.chunk_queue import ChunkAnswer, ChunkQueue, Counts, PendingChunk
from stretto.decoder.launching import make_launcher
from stretto.decoder.loop import DecodingLoop
from stretto.decoder.sessions import Sessions
from stretto.records.chunk import Chunk
from stretto.streams.chunking import ChunkPolicy, DecodingTime
from stretto.triton_io.flow import FlowTable
from stretto_client.capacity.traces import Trace, underrun_s


@dataclass
class TimedCodec:
    """Fake codec that only advances its clock: by `batch_s`, plus `frame_s` for each frame of context and window."""

    spec: CodecSpec
    frame_s: float
    batch_s: float
    now_s: float = 0.0

    def encode(self, pcm: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def initial_state(self, batch: int) -> Tensor:
        return torch.zeros(batch, 0)

    def decode(self, window: Window) -> tuple[Tensor, Tensor]:
        batch, _, frames = window.codes.shape
        self.now_s += self.batch_s + batch * frames * self.frame_s
        samples = self.spec.num_samples(frames - window.left - window.right, window.right)
        return torch.full((batch, samples), 0.1), window.state


class TimedStage:
    """Decoder with a clock that advances by the time of its codec."""

    has_graphs = False

    def __init__(self, codec: TimedCodec) -> None:
        config = DecoderConfig(max_utterances=1024)
        self._codec = codec
        self._queue = ChunkQueue()
        sessions = Sessions(codec, config.max_utterances, config.idle_timeout_s, self.now)
        self._loop = DecodingLoop(codec, config, self._queue, Counts(), sessions, make_launcher(codec, config))
        self._loop.clock = lambda: codec.now_s
        self._loop.enter()
        self._now = 0.0
        self._free_at = 0.0
        self._turn_s: float | None = None  # the codec's time at the start of the current turn

    def now(self) -> float:
        return self._now if self._turn_s is None else self._free_at + self._codec.now_s - self._turn_s

    def time(self) -> DecodingTime:
        return self._loop.stopwatch.measured

    def push(self, utterance: str, chunk: Chunk, codes: np.ndarray, reply: ChunkAnswer) -> None:
        self._queue.put(PendingChunk(utterance, chunk, codes, reply))

    def until(self, at: float) -> None:
        """Advance to `at`; chunks that arrive during a turn, which may end later, wait for the next one."""
        self._free_at = max(self._free_at, self._now)
        while self._free_at < at and len(self._queue) + self._loop.num_jobs:
            self._turn_s = self._codec.now_s
            self._loop.turn()
            self._free_at = self.now()
            self._turn_s = None
        self._now = at


Kind = tuple[CodecSpec, float, float]  # the first fields of a `TimedCodec`
# Processor time of the bundled codec, of a DAC with few channels and of a wide codec: on one core of 2.5 GHz, about.
BUNDLED = CodecSpec("bundled", 16_000, 640, 7, 256, Windowed(8, 1)), 0.00022, 0.002
DAC = CodecSpec("dac", 16_000, 320, 12, 1024, Windowed(10, 10)), 0.00005, 0.002
SLOW = CodecSpec("slow", 24_000, 1920, 32, 256, Stateful()), 0.00385, 0.0052


def play(
    folder: Path, kind: Kind, load: LiveLoad, first_frames: int, *before: LiveLoad, steady_frames: int = 25
) -> list[Trace]:
    """Play loads in simulated time, without randomness, and return the traces of the clients of `load`."""
    codec = TimedCodec(*kind)
    rate, held = codec.spec.frame_rate, codec.spec.right_frames
    policy = ChunkPolicy(first_frames, steady_frames, frame_rate=rate, held_frames=held)
    stage = TimedStage(codec)
    table = FlowTable.create(0, directory=folder)
    table.clock = stage.now
    live = LiveStreams(stage, codec.spec, np.zeros((codec.spec.num_codebooks, 1000), np.int32), table)
    for earlier in (LiveLoad(2, 2.0, 2 * codec.spec.frame_rate), *before):
        live.run(earlier, policy)
    traces, _, _ = live.run(load, policy)
    table.remove()
    return traces


@pytest.mark.parametrize("stagger_s", [1.0, 3.0])
@pytest.mark.parametrize("streams", [1, 8, 32])
@pytest.mark.parametrize(("kind", "first_frames"), [(BUNDLED, 4), (DAC, 8)], ids=["bundled", "dac"])
def test_32_streams_of_a_small_codec_have_no_underruns(
    tmp_path: Path, kind: Kind, first_frames: int, streams: int, stagger_s: float
) -> None:
    """50 frames per second are twice real time for the bundled codec, and real time for DAC."""
    traces = play(tmp_path, kind, LiveLoad(streams, 6.0, 50.0, stagger_s), first_frames)
    assert len(traces) == streams
    assert all(trace.error is None and sum(trace.durations) == pytest.approx(6.0) for trace in traces)
    assert max(map(underrun_s, traces)) <= 1e-3


@pytest.mark.parametrize(("kind", "first_frames", "expected_s"), [(BUNDLED, 4, 5 / 50), (DAC, 8, 18 / 50)])
def test_single_stream_starts_with_its_first_frames(
    tmp_path: Path, kind: Kind, first_frames: int, expected_s: float
) -> None:
    [trace] = play(tmp_path, kind, LiveLoad(1, 2.0, 50.0), first_frames)
    assert trace.arrivals[0] - trace.sent <= expected_s + 0.005


CROWD = LiveLoad(16, 8.0, 66.0, stagger_s=0.0)  # at once; they keep the decoder 80 % busy


@pytest.mark.parametrize("before", [(), (CROWD,), (CROWD, CROWD)])
def test_a_crowd_begins_with_small_chunks_and_hardly_underruns(tmp_path: Path, before: tuple[LiveLoad, ...]) -> None:
    """16 first chunks of 12 frames would take 0.83 s."""
    traces = play(tmp_path, SLOW, CROWD, 1, *before, steady_frames=12)
    assert max(trace.durations[0] for trace in traces) <= 6 / 12.5
    assert max(map(underrun_s, traces)) <= 0.05


def test_a_stream_after_a_crowd_begins_with_a_small_chunk(tmp_path: Path) -> None:
    [trace] = play(tmp_path, SLOW, LiveLoad(1, 4.0, 66.0), 1, CROWD, steady_frames=12)
    assert trace.durations[0] <= 6 / 12.5
    assert underrun_s(trace) <= 1e-3
