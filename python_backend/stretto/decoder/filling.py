"""Utterances of which only the first codebook is generated; the others are filled in before decoding.

    prompt, codes [1, n], codes [1, n], … the last ─► passage ─► codes [K, T] ─► windows ─► samples, all at once

Nothing is audible before the last chunk, because the model that fills in codebooks needs the whole utterance.
"""

from collections import deque

import numpy as np

from stretto.codec.refinement.base import Passage, Refinement, check_given, check_prompt
from stretto.decoder.streaming import FrameWindow, Windower
from stretto.errors import InvalidRequest
from stretto.records.chunk import Chunk

Work = FrameWindow | Passage  # unit of work of an utterance
PART_FRAMES = 25  # frames decoded at once, so that other utterances get a turn in between


class Filling:
    """Codes collected for one utterance, and the filled-in codes that remain to be decoded."""

    def __init__(self, refinement: Refinement, prompt: np.ndarray) -> None:
        check_prompt(prompt, refinement)
        self._refinement = refinement
        self._prompt = np.ascontiguousarray(prompt.T, np.int64)
        self._given = np.zeros(0, np.int64)
        self._parts = deque[np.ndarray]()
        self._spoken = list[np.ndarray]()

    @property
    def num_bytes(self) -> int:
        """Memory that grows with the utterance, in bytes."""
        held = (self._prompt, self._given, *self._parts, *self._spoken)
        return sum(each.nbytes for each in held)

    def take(self, codes: np.ndarray | None) -> None:
        """Append codes [1, T]; raise InvalidRequest if they are invalid."""
        if codes is not None:
            check_given(codes, len(self._prompt) + len(self._given), self._refinement)
            self._given = np.concatenate([self._given, codes[0].astype(np.int64)])

    def passage(self) -> Passage | None:
        """Return the whole utterance as a passage to fill in, or None if it has no frame."""
        return Passage(self._prompt, self._given) if len(self._given) else None

    def fill(self, codes: np.ndarray) -> None:
        """Store the filled-in codes [K, T]."""
        assert codes.shape[1] == len(self._given), f"filled {codes.shape[1]} frames of {len(self._given)}"
        self._parts.extend(codes[:, at : at + PART_FRAMES] for at in range(0, codes.shape[1], PART_FRAMES))

    @property
    def is_filled(self) -> bool:
        """True if filled-in codes remain to be decoded."""
        return bool(self._parts)

    def next_window(self, windower: Windower) -> tuple[FrameWindow, bool]:
        """Return the next window to decode, and whether it is the last."""
        while self._parts:
            part = self._parts.popleft()
            window = windower.push(part, is_final=not self._parts)
            if window is not None:
                return window, not self._parts
        raise AssertionError("the last part completes a window")

    def keep(self, pcm: np.ndarray) -> None:
        """Store samples [n] of a window that is not the last."""
        self._spoken.append(pcm)

    def joined(self, pcm: np.ndarray) -> np.ndarray:
        """Return all samples of the utterance, given those of its last window."""
        return np.concatenate([*self._spoken, pcm])


def take_prompt(
    filling: Filling | None, refinement: Refinement | None, chunk: Chunk, codes: np.ndarray | None
) -> Filling | None:
    """Return the collected codes of an utterance, created by its first chunk; None if its codes are complete.

    Raises:
        InvalidRequest: If the prompt is missing, or present for a codec that fills in nothing.
    """
    if chunk.index:
        if chunk.is_prompt:
            raise InvalidRequest("chunk.is_prompt", "false behind the first chunk", chunk.is_prompt)
        return filling
    if (refinement is not None) != chunk.is_prompt or (chunk.is_prompt and codes is None):
        expected = "the prompt's rows" if refinement is not None else "no prompt, as all codebooks come"
        raise InvalidRequest("chunk.is_prompt", expected, chunk.is_prompt)
    return None if refinement is None or codes is None else Filling(refinement, codes)
