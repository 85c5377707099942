"""Streams of the acoustic decoder alone: codes in chunks, live streams on a clock, and timed windows."""

import threading
import time
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from stretto.codecs.base import Codec, CodecSpec
from stretto.config import DecoderConfig
from stretto.decoder.chunk_queue import ChunkAnswer
from stretto.decoder.worker import DecoderWorker
from stretto.records.chunk import Chunk, Event
from stretto.streams.chunking import ChunkPolicy, DecodingTime, Pacer
from stretto.streams.layout import Segment
from stretto.testing.codec_streams import random_codes
from stretto.triton_io.flow import FlowSlot, FlowTable
from stretto_client.capacity.traces import Trace


class Stage(Protocol):
    """A decoder with a clock."""

    @property
    def has_graphs(self) -> bool:
        """True if chunks of usual sizes are decoded by CUDA graphs."""
        ...

    def now(self) -> float: ...

    def until(self, at: float) -> None: ...

    def time(self) -> DecodingTime:
        """Return the decoding time, as the decoder has measured it."""
        ...

    def push(self, utterance: str, chunk: Chunk, codes: np.ndarray, reply: ChunkAnswer) -> None: ...


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
        self._worker.wait_until_warm()

    def stop(self) -> None:
        self._worker.stop()
