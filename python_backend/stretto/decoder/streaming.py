"""Frames of one utterance, cut into windows that decode exactly.

frames   ░░░░░░░░████████▒           ░ left context   █ decoded by this window   ▒ right context
         ^       ^       ^
         first - left    first       last             the next window starts at `last`
"""

from copy import copy
from dataclasses import dataclass

import numpy as np

from stretto.codec.base import CodecSpec
from stretto.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class FrameWindow:
    """Frames [first - left, first + num_frames + right) of one utterance: codes [K, left + num_frames + right]."""

    codes: np.ndarray
    first: int
    left: int
    right: int

    @property
    def num_frames(self) -> int:
        return self.codes.shape[1] - self.left - self.right

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (left, num_frames, right); windows of equal shape decode as one batch."""
        return self.left, self.num_frames, self.right


def check_codes(codes: np.ndarray, spec: CodecSpec) -> None:
    """Raise InvalidRequest unless codes are integers [K, T] in [0, codebook_size)."""
    if codes.ndim != 2 or codes.shape[0] != spec.num_codebooks:
        raise InvalidRequest("codes", f"shape [{spec.num_codebooks}, T]", list(codes.shape))
    if codes.dtype.kind not in "iu":
        raise InvalidRequest("codes", "an integer type", codes.dtype)
    if codes.size and not 0 <= codes.min() <= codes.max() < spec.codebook_size:
        raise InvalidRequest("codes", f"values in [0, {spec.codebook_size})", f"[{codes.min()}, {codes.max()}]")


class Windower:
    """Frames not decoded yet, and the left context of the next window."""

    def __init__(self, spec: CodecSpec) -> None:
        self._spec = spec
        self._kept = np.zeros((spec.num_codebooks, 0), dtype=np.int64)
        self._kept_from = 0  # frame number of the first stored column
        self.next_frame = 0  # first frame not decoded yet

    def copy(self) -> "Windower":
        """Return an independent copy."""
        return copy(self)  # a shallow copy suffices: attributes are replaced, never modified in place

    @property
    def num_bytes(self) -> int:
        """Memory of the stored frames, in bytes."""
        return self._kept.nbytes

    def push(self, codes: np.ndarray | None, is_final: bool) -> FrameWindow | None:
        """Append frames [K, T] and return the window that they complete, or None if more frames are needed.

        The final push decodes all remaining frames without right context.

        Raises:
            InvalidRequest: If the codes are invalid or the utterance is too long.
        """
        if codes is not None:
            check_codes(codes, self._spec)
            self._kept = np.concatenate([self._kept, codes.astype(np.int64)], axis=1)
        received, most = self._kept_from + self._kept.shape[1], self._spec.max_frames
        if most is not None and received > most:
            raise InvalidRequest("codes", f"at most {most} frames in an utterance", received)
        end = received if is_final else self._spec.complete(received)
        last = end if is_final else end - self._spec.right_frames
        too_early = not is_final and received < self._spec.start_frames
        if last <= self.next_frame or too_early:
            return None
        left = self.next_frame - self._kept_from
        window = FrameWindow(self._kept[:, : end - self._kept_from], self.next_frame, left, end - last)
        self._forget_before(self._spec.heard_from(last))
        self.next_frame = last
        return window

    def _forget_before(self, frame: int) -> None:
        surplus = max(0, frame - self._kept_from)
        self._kept = self._kept[:, surplus:].copy()
        self._kept_from += surplus
