"""What came of a request, and what that is worth beside its reference: what the same request brought alone."""

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

TOLERANCE = 1e-4  # of samples in [-1, 1]: the codec decodes windows of many utterances as one batch
FULL_SCALE = {np.dtype(np.float32): 1.0, np.dtype(np.int16): 32_768.0}


class Verdict(StrEnum):
    """right: all of the reference, or refused as it was. left: its reader left, and had the reference's beginning.
    error: an error, and before it nothing but the reference's beginning. The others must never be.
    """

    RIGHT = "right"
    LEFT = "left"
    ERROR = "error"
    WRONG = "wrong"
    INCOMPLETE = "incomplete"
    HUNG = "hung"


BAD = (Verdict.WRONG, Verdict.INCOMPLETE, Verdict.HUNG)


@dataclass(slots=True)
class Answer:
    """One answer as its reader has it so far.

    pcm: the samples of each event that had any. error: the class of what ended it, None without one; said: its message.
    is_final: the last event has come. has_left: the reader has given it up. is_overdue: it did not end in time.
    """

    text: str = ""
    pcm: list[np.ndarray] = field(default_factory=list)
    error: str | None = None
    said: str = ""
    is_final: bool = False
    has_left: bool = False
    is_overdue: bool = False

    def samples(self) -> np.ndarray:
        """All samples so far [n], float32 or int16."""
        return np.concatenate(self.pcm) if self.pcm else np.zeros(0, np.float32)


def judge(reference: Answer, answer: Answer) -> Verdict:
    """What `answer` is worth."""
    if answer.is_overdue:
        return Verdict.HUNG
    if reference.error is not None:
        if answer.error == reference.error or answer.has_left:
            return Verdict.RIGHT
        return Verdict.WRONG if answer.error is None else Verdict.ERROR
    if not begins(reference, answer) or answer.error == "RequestRefused":
        return Verdict.WRONG
    if answer.error is not None:
        return Verdict.ERROR
    if answer.has_left:
        return Verdict.LEFT
    is_whole = len(answer.samples()) == len(reference.samples()) and answer.text == reference.text
    return Verdict.RIGHT if answer.is_final and is_whole else Verdict.INCOMPLETE


def begins(reference: Answer, answer: Answer) -> bool:
    """Whether all that has come is what the reference begins with."""
    expected, got = reference.samples(), answer.samples()
    if not reference.text.startswith(answer.text) or len(got) > len(expected):
        return False
    if not len(got):
        return True
    if got.dtype != expected.dtype:
        return False
    apart = np.abs(got.astype(np.float64) - expected[: len(got)].astype(np.float64))
    return bool(apart.max() <= TOLERANCE * FULL_SCALE[got.dtype])
