"""Simulated live streams: frames arrive at the speed of a language model, and pass through the pacer and a decoder."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from benchmarks.loads import Trace
from stretto.codecs.base import Codec, CodecSpec
from stretto.config import DecoderConfig
from stretto.decoder.chunk_queue import ChunkAnswer, ChunkQueue, Counts, PendingChunk
from stretto.decoder.loop import DecodingLoop
from stretto.decoder.sessions import Sessions
from stretto.decoder.worker import DecoderWorker
from stretto.records.chunk import Chunk
from stretto.records.event import Event
from stretto.streams.chunking import ChunkPolicy, Pacer
from stretto.streams.layout import Segment
from stretto.triton_io.flow import FlowSlot, FlowTable


class RealTime:
    """A decoder thread in real time."""

    def __init__(self, codec: Codec, config: DecoderConfig) -> None:
        self._worker = DecoderWorker(codec, config)
        self.now = time.monotonic
        self.push = self._worker.push

    def pace_s(self) -> float:
        """Return the decoder's estimate of the time per chunk in seconds."""
        return self._worker.pace_s

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
    """

    def __init__(self, codec: Codec, config: DecoderConfig, stopwatch: Callable[[], float] = time.thread_time) -> None:
        self._stopwatch = stopwatch
        self._queue = ChunkQueue()
        sessions = Sessions(codec, config.max_utterances, config.idle_timeout_s, self.now)
        self._loop = DecodingLoop(codec, config, self._queue, Counts(), sessions)
        self._loop.stopwatch = stopwatch
        self._loop.enter()
        self._now = self._free_at = 0.0
        self._turn_s: float | None = None  # value of the stopwatch at the start of the current turn

    def now(self) -> float:
        return self._now if self._turn_s is None else self._free_at + self._stopwatch() - self._turn_s

    def pace_s(self) -> float:
        return self._loop.pace.chunk_s

    def push(self, utterance: str, chunk: Chunk, codes: np.ndarray, reply: ChunkAnswer) -> None:
        self._queue.put(PendingChunk(utterance, chunk, codes, reply))

    def until(self, at: float) -> None:
        """Advance the time to `at`. A turn that begins before may end after it; later chunks wait for the next turn."""
        self._free_at = max(self._free_at, self._now)
        while self._free_at < at and len(self._queue) + self._loop.num_jobs:
            self._turn_s = self._stopwatch()
            self._loop.turn()
            self._free_at, self._turn_s = self.now(), None
        self._now = at

    def close(self) -> None:
        """Do nothing: there is no thread."""


Stage = RealTime | ProcessorTime


@dataclass(frozen=True)
class LiveLoad:
    """`streams` utterances of `seconds` each.

    Attributes:
        frames_per_s: Speed of the language model, in which all streams advance together.
        stagger_s: Time over which their starts are spread.
    """

    streams: int
    seconds: float
    frames_per_s: float
    stagger_s: float = 1.0


@dataclass
class _Reply:
    """Records when the samples of a chunk arrive."""

    stream: "_Stream"
    sent_s: float
    cancelled: bool = field(default=False)

    def send(self, pcm: np.ndarray | None, event: Event) -> None:
        now, trace = self.stream.stage.now(), self.stream.trace
        if pcm is not None:
            trace.add(now, pcm, event["sample_rate"])
            self.stream.slot.note_latency(now - self.sent_s)
        trace.finished = now if event["is_final"] else None

    def fail(self, error: Exception) -> None:
        self.stream.trace.error, self.stream.trace.finished = repr(error), self.stream.stage.now()

    def is_cancelled(self) -> bool:
        return self.cancelled


class _Stream:
    """One utterance: frames in, as the engine's `Utterance` sends them, and the trace of its client."""

    def __init__(self, name: str, codes: np.ndarray, slot: FlowSlot, policy: ChunkPolicy, stage: Stage) -> None:
        self.slot, self.stage = slot, stage
        self.sizes: list[int] = []
        self.trace = Trace(stage.now())
        self._name, self._codes = name, codes
        self._pacer = Pacer(policy, lambda: slot.load, stage.now)
        self._num_ready = self._num_sent = 0

    def step(self) -> bool:
        """Add a frame; return True if more follow."""
        self._num_ready += 1
        is_last = self._num_sent + self._num_ready == self._codes.shape[1]
        while not is_last and (size := self._pacer.num_to_send(self._num_ready)):
            self._send(size, False)
        if is_last:
            self._send(self._num_ready, True)
        return not is_last

    def _send(self, size: int, is_final: bool) -> None:
        codes = self._codes[:, self._num_sent : self._num_sent + size]
        chunk = Chunk(len(self.sizes), Segment.AUDIO, is_final=is_final)
        self.slot.set_pace(self.stage.pace_s())
        self.stage.push(self._name, chunk, codes, _Reply(self, self.stage.now()))
        self.sizes.append(size)
        self._num_sent += size
        self._num_ready -= size


class LiveStreams:
    """Plays loads on a stage and records their traces."""

    def __init__(self, stage: Stage, spec: CodecSpec, codes: np.ndarray, table: FlowTable) -> None:
        self._stage, self._spec, self._codes, self._table = stage, spec, codes, table
        self._num_runs = 0

    def run(self, load: LiveLoad, policy: ChunkPolicy) -> tuple[list[Trace], list[int], float]:
        """Play a load; return its traces, all chunk sizes and its duration in seconds."""
        self._num_runs += 1
        stage, begun, tick = self._stage, self._stage.now(), 0
        starts = [begun + load.stagger_s * index / load.streams for index in range(load.streams)]
        streams: list[_Stream] = []
        active: list[_Stream] = []
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
        for stream in streams:
            self._table.release(stream.slot.address)
        sizes = [size for stream in streams for size in stream.sizes]
        return [stream.trace for stream in streams], sizes, stage.now() - begun

    def _start(self, load: LiveLoad, index: int, policy: ChunkPolicy) -> _Stream:
        num_frames = max(2, round(load.seconds * self._spec.frame_rate))
        codes = np.roll(self._codes, index, axis=1)
        codes = np.tile(codes, -(-num_frames // codes.shape[1]))[:, :num_frames]
        return _Stream(f"{self._num_runs}.{index}", codes, self._table.claim(), policy, self._stage)
