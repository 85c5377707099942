"""Utterances whose first codebook alone comes: they are gathered, filled in as wholes, and then decoded in parts.

    prompt, codes [1, n], codes [1, n], … the last ─► passage ─► codes [K, T] ─► windows ─► samples, all at once

Nothing is heard before the last chunk: what fills the other codebooks looks at the whole utterance.
"""

from collections import deque

import numpy as np

from stretto.codec.refinement.base import Passage, Refinement, check_given, check_prompt
from stretto.decoder.streaming import FrameWindow, Windower
from stretto.errors import InvalidRequest
from stretto.records.chunk import Chunk

Work = FrameWindow | Passage  # what is done for an utterance at once
PART_FRAMES = 25  # decoded at once: between them others have their turn


class Filling:
    """What one utterance has been given so far, and what of it is to be decoded when it is whole."""

    def __init__(self, refinement: Refinement, prompt: np.ndarray) -> None:
        check_prompt(prompt, refinement)
        self._refinement = refinement
        self._prompt = np.ascontiguousarray(prompt.T, np.int64)
        self._given = np.zeros(0, np.int64)
        self._parts = deque[np.ndarray]()
        self._spoken = list[np.ndarray]()

    @property
    def num_bytes(self) -> int:
        """Memory that grows with the utterance."""
        held = (self._prompt, self._given, *self._parts, *self._spoken)
        return sum(each.nbytes for each in held)

    def take(self, codes: np.ndarray | None) -> None:
        """Codes [1, T] of the next frames; InvalidRequest where they are none."""
        if codes is not None:
            check_given(codes, len(self._prompt) + len(self._given), self._refinement)
            self._given = np.concatenate([self._given, codes[0].astype(np.int64)])

    def passage(self) -> Passage | None:
        """The whole utterance, to be filled in; None where it has no frame."""
        return Passage(self._prompt, self._given) if len(self._given) else None

    def fill(self, codes: np.ndarray) -> None:
        """Its codes are [K, T], all of them."""
        assert codes.shape[1] == len(self._given), f"filled {codes.shape[1]} frames of {len(self._given)}"
        self._parts.extend(codes[:, at : at + PART_FRAMES] for at in range(0, codes.shape[1], PART_FRAMES))

    @property
    def is_filled(self) -> bool:
        """Whether parts of it are left to be decoded."""
        return bool(self._parts)

    def next_window(self, windower: Windower) -> tuple[FrameWindow, bool]:
        """The next window to be decoded, and whether it is the last."""
        while self._parts:
            part = self._parts.popleft()
            window = windower.push(part, is_final=not self._parts)
            if window is not None:
                return window, not self._parts
        raise AssertionError("the last part completes a window")

    def keep(self, pcm: np.ndarray) -> None:
        """Samples [n] of a window that is not the last."""
        self._spoken.append(pcm)

    def joined(self, pcm: np.ndarray) -> np.ndarray:
        """All samples of the utterance, with those of its last window."""
        return np.concatenate([*self._spoken, pcm])


def take_prompt(
    filling: Filling | None, refinement: Refinement | None, chunk: Chunk, codes: np.ndarray | None
) -> Filling | None:
    """What is filled of an utterance behind a chunk, of which the first opens it; None where its codes are whole.

    InvalidRequest where a prompt is missing, or was sent for nothing.
    """
    if chunk.index:
        if chunk.is_prompt:
            raise InvalidRequest("chunk.is_prompt", "false behind the first chunk", chunk.is_prompt)
        return filling
    if (refinement is not None) != chunk.is_prompt or (chunk.is_prompt and codes is None):
        expected = "the prompt's rows" if refinement is not None else "no prompt, as all codebooks come"
        raise InvalidRequest("chunk.is_prompt", expected, chunk.is_prompt)
    return None if refinement is None or codes is None else Filling(refinement, codes)
