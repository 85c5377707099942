"""Interface of families that read live audio: the encoder of its frames, and the silence around it."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from stretto.codecs.encoded_stream import FrameEncoder
from stretto.families.base import Task
from stretto.families.prompting import PromptRows


@dataclass(frozen=True)
class LiveInput:
    """Live audio of a checkpoint.

    Attributes:
        encoder: Encoder of the frames.
        sample_rate: Sample rate of the encoder in Hz.
        before_s: Silence before the audio, in seconds.
        after_s: Silence after the audio, in seconds; more completes the last frame.
        first_ids: Id of code 0 of each codebook, [K].
    """

    encoder: FrameEncoder
    sample_rate: int
    before_s: float
    after_s: float
    first_ids: tuple[int, ...]

    def ids(self, codes: np.ndarray) -> np.ndarray:
        """Return the ids of codes [K, n] as rows, int32 [n, K]."""
        return (codes.T + np.array(self.first_ids)).astype(np.int32)


@runtime_checkable
class LiveTemplate(Protocol):
    """Template of a family that reads live audio."""

    def write_live(self, task: Task) -> PromptRows:
        """Return the prompt of a session, without audio."""
        ...
