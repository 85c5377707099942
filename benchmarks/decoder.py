"""The acoustic decoder alone, with timed windows of many streams."""

import threading
import time

import numpy as np

from stretto.codecs.base import Codec
from stretto.config import DecoderConfig
from stretto.decoder.worker import DecoderWorker
from stretto.records.chunk import Chunk, Event
from stretto.streams.layout import Segment
from stretto.testing.codec_streams import random_codes


class CountingReply:
    """Reply that counts its `number` chunks, whether sent or failed."""

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
        """Wait until every chunk has been sent or has failed; raise the error of a failed one."""
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
