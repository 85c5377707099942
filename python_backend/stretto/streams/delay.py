"""Delay pattern and its inverse.

Stream k is delayed by `delays[k]` rows. With delays (0, 1, 2) and T = 3 frames, `.` for padding:

    row       0  1  2  3  4
    stream 0  0  1  2  .  .
    stream 1  .  0  1  2  .
    stream 2  .  .  0  1  2
"""

import numpy as np


def delay_codes(codes: np.ndarray, delays: tuple[int, ...], pad: int) -> np.ndarray:
    """Return frames as rows: codes [K, T] -> rows [T + max(delays), K], with `pad` in empty positions."""
    num_codebooks, num_frames = codes.shape
    rows = np.full((num_frames + max(delays), num_codebooks), pad, codes.dtype)
    for k, delay in enumerate(delays):
        rows[delay : delay + num_frames, k] = codes[k]
    return rows


def undelay_codes(rows: np.ndarray, delays: tuple[int, ...]) -> np.ndarray:
    """Return rows as frames: rows [T + max(delays), K] -> codes [K, T]."""
    num_frames = rows.shape[0] - max(delays)
    return np.stack([rows[delay : delay + num_frames, k] for k, delay in enumerate(delays)])


class Undelayer:
    """Incremental inverse of the delay pattern; a frame is complete once its most delayed stream has arrived."""

    def __init__(self, delays: tuple[int, ...]):
        self._delays, self._longest = delays, max(delays)
        self._rows = np.zeros((0, len(delays)), np.int64)

    @property
    def num_ready(self) -> int:
        """Number of complete frames not taken yet."""
        return max(0, len(self._rows) - self._longest)

    def push(self, rows: np.ndarray) -> None:
        """Append rows, [n, K]."""
        self._rows = np.concatenate([self._rows, rows])

    def take(self, num_frames: int) -> np.ndarray:
        """Remove and return the next `num_frames` complete frames, [K, num_frames]."""
        assert 0 < num_frames <= self.num_ready, (num_frames, self.num_ready)
        rows, self._rows = self._rows[: num_frames + self._longest], self._rows[num_frames:]
        return undelay_codes(rows, self._delays)
