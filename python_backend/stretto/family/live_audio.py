"""Interface of families that read live audio: the frame encoder, and the silence around the audio."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from stretto.codecs.encoded_stream import FrameEncoder
from stretto.family.base import Task
from stretto.family.prompting import Piece, PromptRows


class FrameIds:
    """Incremental conversion of a recording's codes to rows of ids under the delay pattern.

    Args:
        first_ids: Id of code 0 of each codebook, [K].
        delays: Delay of each codebook in rows, [K].
        initial: Id of each codebook before its first frame, [K]; empty if there are no delays.
    """

    def __init__(self, first_ids: Sequence[int], delays: Sequence[int] = (), initial: Sequence[int] = ()):
        self._first_ids = np.array(first_ids)
        self._delays = tuple(delays) or (0,) * len(first_ids)
        self._before = np.repeat(np.array([initial or first_ids]), max(self._delays), 0)  # frames that later rows need

    def push(self, codes: np.ndarray) -> np.ndarray:
        """Add frames of codes [K, n], and return the rows that they complete, int32 [n, K]."""
        num_before = len(self._before)
        num_frames = codes.shape[1]
        frames = np.concatenate([self._before, codes.T + self._first_ids])
        self._before = frames[num_frames:]
        starts = [num_before - delay for delay in self._delays]
        columns = [frames[start : start + num_frames, k] for k, start in enumerate(starts)]
        return np.stack(columns, 1).astype(np.int32)


@dataclass(frozen=True)
class LiveInput:
    """Live-audio input of a checkpoint.

    Attributes:
        before_s: Silence before the audio, in seconds.
        after_s: Silence after the audio, in seconds, in addition to the silence that completes the last frame.
        open_ids: Function that creates the converter of a session's codes to ids.
    """

    encoder: FrameEncoder
    sample_rate: int
    before_s: float
    after_s: float
    open_ids: Callable[[], FrameIds]


@runtime_checkable
class LiveTemplate(Protocol):
    """Prompt template of a family that reads live audio."""

    def write_live(self, task: Task, pieces: tuple[Piece, ...], voice: str | None) -> PromptRows:
        """Return a session's prompt, without its audio; raise InvalidRequest if a piece is too long or unusable.

        Args:
            pieces: Conversation before the audio; empty unless `Task.system` permits a system turn.
        """
        ...
