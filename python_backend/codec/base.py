"""The seam between a codec and everything that uses one."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor


@dataclass(frozen=True, slots=True)
class CodecSpec:
    """What a codec is. Frame t covers samples [t, t + 1) * samples_per_frame of the waveform.

    left_frames, right_frames: context that `decode` needs on each side of a window so that its samples are
    exactly those of one decode of the whole utterance (given the carried state).
    """

    name: str
    sample_rate: int
    samples_per_frame: int
    num_codebooks: int
    codebook_size: int
    left_frames: int
    right_frames: int

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.sample_rate / self.samples_per_frame


@dataclass(frozen=True, slots=True)
class Window:
    """Frames [first - left, last + right) of B utterances, of which [first, last) are to be decoded.

    codes: [B, K, left + (last - first) + right] int64. `left` is below the codec's left_frames only at the true
    start of the utterances, `right` below right_frames only at their true end: windows of one batch share both.
    first: [B] int64, index of the first frame to be decoded in each utterance.
    state: [B, D] as `initial_state` or the previous window of each utterance gave it.
    """

    codes: Tensor
    left: int
    right: int
    first: Tensor
    state: Tensor


class Codec(Protocol):
    """A codec; `decode` of successive windows, concatenated, equals one `decode` of the whole."""

    spec: CodecSpec

    def encode(self, pcm: np.ndarray) -> np.ndarray:
        """Codes [K, T] int64 of mono `pcm` [n] float32 at `spec.sample_rate`."""
        ...

    def initial_state(self, batch: int) -> Tensor:
        """State [batch, D] before the first frame; D is 0 for a codec that carries none."""
        ...

    def decode(self, window: Window) -> tuple[Tensor, Tensor]:
        """Waveform [B, n] float32 of frames [first, last), and the state for the window that starts at `last`."""
        ...
