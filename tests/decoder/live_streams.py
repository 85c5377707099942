"""Live streams on a decoder whose decode times follow a formula, in simulated time."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stretto.codecs.base import CodecSpec, Window
from stretto.config import DecoderConfig
from stretto.decoder.chunk_queue import ChunkAnswer, ChunkQueue, Counts, PendingChunk
from stretto.decoder.launching import make_launcher
from stretto.decoder.loop import DecodingLoop
from stretto.decoder.sessions import Sessions
from stretto.records.chunk import Chunk, Event
from stretto.streams.chunking import ChunkPolicy, DecodingTime, Pacer
from stretto.streams.layout import Segment
from stretto.triton_io.flow import FlowSlot, FlowTable
from stretto_client.capacity.traces import Trace


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

    def __init__(self, codec: TimedCodec) -> None:
        config = DecoderConfig(max_utterances=1024)
        self.spec = codec.spec
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


@dataclass
class StreamReply:
    """Reply that records when the samples of each chunk arrive."""

    stream: "LiveStream"
    sent_s: float
    host: str = ""
    wanted_s: float = 0.0

    def send(self, pcm: np.ndarray | None, event: Event) -> None:
        now = self.stream.stage.now()
        if pcm is not None:
            self.stream.trace.add(now, pcm, event["sample_rate"])
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
        return False


class LiveStream:
    """One utterance, which sends frames as the engine's `Utterance` does and records its client's trace."""

    def __init__(self, name: str, codes: np.ndarray, slot: FlowSlot, policy: ChunkPolicy, stage: TimedStage) -> None:
        self.slot = slot
        self.stage = stage
        self.trace = Trace(stage.now())
        self._name = name
        self._codes = codes
        self._pacer = Pacer(policy, lambda: slot.load, stage.now, note_gap=slot.note_gap)
        self._num_chunks = self._num_ready = self._num_sent = 0

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
        chunk = Chunk(self._num_chunks, Segment.AUDIO, is_final=is_final)
        self.slot.set_time(self.stage.time(), False)
        self.stage.push(self._name, chunk, codes, StreamReply(self, self.stage.now()))
        self._num_chunks += 1
        self._num_sent += size
        self._num_ready -= size


def play(name: str, load: LiveLoad, policy: ChunkPolicy, stage: TimedStage, table: FlowTable) -> list[Trace]:
    """Play the load `name` on a decoder and return its traces."""
    begun = stage.now()
    starts = [begun + load.stagger_s * index / load.streams for index in range(load.streams)]
    streams = list[LiveStream]()
    active = list[LiveStream]()
    tick = 0
    while len(streams) < load.streams or active:
        tick += 1
        stage.until(begun + tick / load.frames_per_s)
        while len(streams) < load.streams and starts[len(streams)] <= stage.now():
            num_frames = max(2, round(load.seconds * stage.spec.frame_rate))
            codes = np.zeros((stage.spec.num_codebooks, num_frames), np.int32)
            streams.append(LiveStream(f"{name}.{len(streams)}", codes, table.claim(), policy, stage))
            active.append(streams[-1])
        active = [stream for stream in active if stream.step()]
    limit = stage.now() + 60
    while any(stream.trace.finished is None for stream in streams) and stage.now() < limit:
        stage.until(stage.now() + 0.02)
    return [stream.trace for stream in streams]
