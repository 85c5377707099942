"""Conversion of rows of ids to frames of codes, for the decoder and the client."""

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

from stretto.families.base import Family
from stretto.streams.delay import Undelayer


class FrameCodes:
    """Codes of some streams of a reply, frame by frame; `num_taken` counts the frames requested so far."""

    def __init__(self, family: Family, streams: Sequence[int]):
        layout = family.layout
        self._streams, self._leaves_out = np.asarray(streams), family.leaves_out_extra
        self._rows_per_frame, places = family.rows_per_frame, layout.frame_codec.places
        lines = places or [layout.audio[s] for s in streams]
        self._first_ids = np.asarray([ids.start for ids in lines])
        self._num_ids = np.asarray([len(ids) for ids in lines])
        self._no_codes = [layout.extra[s] for s in streams] if layout.extra else [()] * len(lines)
        self._undelayer = Undelayer(tuple(layout.delays[s] for s in streams))
        self._left_out: list[int] = []  # indices of frames left out
        self.num_taken = 0

    def push(self, rows: np.ndarray) -> None:
        """Add rows, [n, S]."""
        self._undelayer.push(rows[:, self._streams])

    @property
    def num_ready(self) -> int:
        """Number of complete frames."""
        return self._undelayer.num_ready // self._rows_per_frame

    def take(self, num_frames: int) -> np.ndarray | None:
        """Return the codes of the next `num_frames` frames, int32 [K, n].

        An id that is no code, such as a pad, is replaced by the nearest code. For families that leave such frames out,
        n may be smaller, and the result is None if no frame remains.
        """
        first = self.num_taken
        self.num_taken += num_frames
        ids = self._undelayer.take(num_frames * self._rows_per_frame)
        if self._rows_per_frame > 1:
            ids = ids.reshape(num_frames, -1).T
        codes = ids - self._first_ids[:, None]
        is_code = (codes >= 0) & (codes < self._num_ids[:, None])
        for stream, frame in np.argwhere(~is_code):
            found = int(ids[stream, frame])
            assert found in self._no_codes[stream], (
                f"frame {first + frame}: id {found} in line {stream} is no code of it"
            )
        codes = codes.clip(0, self._num_ids[:, None] - 1).astype(np.int32)
        if not self._leaves_out:
            return codes
        is_heard = is_code.all(0)
        self._left_out += (first + np.flatnonzero(~is_heard)).tolist()
        return codes[:, is_heard] if is_heard.any() else None

    def heard_at(self, frame: int) -> int:
        """Return the index, among the frames that were kept, of `frame` or the next kept frame."""
        return frame - bisect_left(self._left_out, frame)
