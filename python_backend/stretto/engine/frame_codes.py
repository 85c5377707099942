"""Rows of a reply, converted to frames of codes or latents."""

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

from stretto.errors import StrettoError
from stretto.family.base import Family
from stretto.streams.layout import Undelayer, latents_of


class FrameCodes:
    """Converter of a reply's rows to frames: it undoes the delay pattern and subtracts each codebook's first id.

    Attributes:
        num_taken: Number of frames requested from `pop_frames` so far.
    """

    def __init__(self, family: Family, streams: Sequence[int]):
        layout = family.layout
        self._streams = np.asarray(streams)
        self._rows_per_frame = family.rows_per_frame
        places = layout.frame_codec.places
        self._are_latents = layout.latents is not None
        self._frame = layout.audio[0].start
        lines = [] if self._are_latents else places or [layout.audio[s] for s in streams]
        self._first_ids = np.asarray([ids.start for ids in lines])
        self._num_ids = np.asarray([len(ids) for ids in lines])
        self._no_codes = [layout.extra[s] for s in streams] if lines and layout.extra else [()] * len(lines)
        self._undelayer = Undelayer(tuple(layout.delays[s] for s in streams))
        self._is_frame = np.zeros(0, np.bool_)  # for each row pushed, if frames are latents
        self._left_out: list[int] = []  # indices of omitted frames
        self._filter = None if family.mechanism.frames is None else family.mechanism.frames.open()
        self.num_taken = 0

    def push(self, rows: np.ndarray) -> None:
        """Append rows of all output streams, [n, S]."""
        self._undelayer.push(rows[:, self._streams])
        if self._are_latents and self._filter is not None:
            self._is_frame = np.append(self._is_frame, rows[:, 0] == self._frame)

    @property
    def num_ready(self) -> int:
        """Number of complete frames that `pop_frames` has not returned yet."""
        return self._undelayer.num_ready // self._rows_per_frame

    def pop_frames(self, num_frames: int) -> np.ndarray | None:
        """Return the codes of the next `num_frames` frames, or their latents as words (`words_of`): int32 [K, n].

        An id that is not a code, such as a pad, is replaced by the nearest code. A family may omit frames
        (`FrameFilter`). If frames are omitted, n is less than `num_frames`; if none remains, the result is None.

        Raises:
            StrettoError: If a latent is not finite.
        """
        first = self.num_taken
        self.num_taken += num_frames
        ids = self._undelayer.pop_frames(num_frames * self._rows_per_frame)
        if self._are_latents:
            if not np.isfinite(latents_of(ids)).all():
                raise StrettoError(
                    f"frames {first} to {first + num_frames - 1}: expected finite latents, got NaN or infinity"
                )
            is_frame, self._is_frame = np.split(self._is_frame, [num_frames])
            return self._kept(ids.astype(np.int32), is_frame[None], first)
        if self._rows_per_frame > 1:
            ids = ids.reshape(num_frames, -1).T
        codes = ids - self._first_ids[:, None]
        is_code = (codes >= 0) & (codes < self._num_ids[:, None])
        for stream, frame in np.argwhere(~is_code):
            token_id = int(ids[stream, frame])
            assert token_id in self._no_codes[stream], (
                f"frame {first + frame}: id {token_id} of stream {stream} is not a code"
            )
        codes = codes.clip(0, self._num_ids[:, None] - 1).astype(np.int32)
        return self._kept(codes, is_code, first)

    def _kept(self, codes: np.ndarray, is_code: np.ndarray, first: int) -> np.ndarray | None:
        """Return the codes [K, n] of frames that the family keeps, or None; `first` is the index of the first frame."""
        if self._filter is None:
            return codes
        is_kept = self._filter(codes, is_code)
        self._left_out += (first + np.flatnonzero(~is_kept)).tolist()
        return codes[:, is_kept] if is_kept.any() else None

    def kept_index(self, frame: int) -> int:
        """Return the number of kept frames before `frame`, which is also its index among kept frames."""
        return frame - bisect_left(self._left_out, frame)
