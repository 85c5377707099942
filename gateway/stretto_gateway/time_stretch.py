"""Change of speed at constant pitch, by FFmpeg's `atempo` filter."""

from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction

import av
import numpy as np
from av.error import BlockingIOError

from stretto_gateway.encoding import Encoder

LEAST_SPEED, GREATEST_SPEED = 0.25, 4.0
STAGES = 2  # atempo takes at least 0.5, and above 2 it skips samples instead of blending them
BLOCKS_PER_S = 50  # fixed block size, because the filter's output depends on it
PADDING_S = 0.5  # silence at the end, to flush the filter's last windows


class TimeStretch:
    """Streaming time stretch of one utterance.

    `n` samples become `round(n / speed)`, at least one. The result does not depend on how the input is divided into
    blocks.
    """

    def __init__(self, speed: float, sample_rate: int):
        """Create the filter graph.

        Args:
            speed: From LEAST_SPEED to GREATEST_SPEED; 2 halves the duration.
            sample_rate: In Hz.
        """
        self._speed, self._rate = speed, sample_rate
        self._num_in = self._num_out = self._num_pushed = 0
        self._kept = np.zeros(0, np.int16)
        self._graph = av.filter.Graph()
        base = Fraction(1, sample_rate)
        source = self._graph.add_abuffer(sample_rate=sample_rate, format="s16", layout="mono", time_base=base)
        tempo = f"{speed ** (1 / STAGES):.9f}"
        stages = [self._graph.add("atempo", tempo) for _ in range(STAGES)]
        self._graph.link_nodes(source, *stages, self._graph.add("abuffersink")).configure()

    def stretch(self, pcm: np.ndarray) -> np.ndarray:
        """Return the samples that are ready after `pcm`; both int16 [n], mono."""
        assert pcm.dtype == np.int16, pcm.dtype
        self._num_in += len(pcm)
        return self._run(pcm)

    def close(self) -> np.ndarray:
        """Return the remaining samples, int16 [n]."""
        due = max(round(self._num_in / self._speed), min(self._num_in, 1)) - self._num_out
        return self._run(np.zeros(round(PADDING_S * self._rate), np.int16))[: max(0, due)]

    def _run(self, pcm: np.ndarray) -> np.ndarray:
        """Filter all whole blocks and return the output."""
        self._kept = np.concatenate([self._kept, pcm])
        size = max(1, self._rate // BLOCKS_PER_S)
        num_whole = len(self._kept) // size * size
        parts = [np.zeros(0, np.int16)]
        for block in self._kept[:num_whole].reshape(-1, size):
            frame = av.AudioFrame.from_ndarray(block[None], format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = self._rate, self._num_pushed, Fraction(1, self._rate)
            self._num_pushed += size
            self._graph.push(frame)
            parts += self._ready()
        self._kept = self._kept[num_whole:]
        made = np.concatenate(parts)
        self._num_out += len(made)
        return made

    def _ready(self) -> Iterator[np.ndarray]:
        with suppress(BlockingIOError):
            while True:
                yield self._graph.pull().to_ndarray()[0]


class StretchedEncoder:
    """Encoder of time-stretched samples."""

    def __init__(self, stretch: TimeStretch, encoder: Encoder):
        self._stretch, self._encoder = stretch, encoder

    def encode(self, pcm: np.ndarray) -> bytes:
        """Return the bytes that can be sent after samples `pcm`: int16 [n]."""
        made = self._stretch.stretch(pcm)
        return self._encoder.encode(made) if len(made) else b""

    def close(self) -> bytes:
        """Return the rest of the file."""
        rest = self._stretch.close()
        return (self._encoder.encode(rest) if len(rest) else b"") + self._encoder.close()
