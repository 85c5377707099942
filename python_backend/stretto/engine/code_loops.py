"""Detection of replies that repeat the same codes and may never end."""

from collections.abc import Iterable

import numpy as np


class CodeLoops:
    """Detector of a sequence of codes that the reply repeats again and again.

    Args:
        codes: Ids of the codes. Others, such as those of text and pads, are ignored.
        max_period: Maximum length of the sequence.
        num_codes: Number of codes, after the first sequence, at which a repetition is too long.
    """

    def __init__(self, codes: range, max_period: int, num_codes: int):
        self._codes = codes
        self._num_codes = num_codes
        self._last = np.full(max_period, -1)  # the last codes, newest first
        self._runs = np.zeros(max_period, np.int64)  # number of codes that repeat those a period before

    @property
    def num_left(self) -> int:
        """Smallest number of further codes after which `find` may return an index."""
        return self._num_codes - int(self._runs.max())

    def find(self, ids: Iterable[int]) -> int | None:
        """Return the index of the id at which a repetition has become too long, or None. Ids after it are not read."""
        for index, token_id in enumerate(ids):
            if token_id not in self._codes:
                continue
            self._runs += 1
            self._runs *= self._last == token_id
            self._last[1:] = self._last[:-1].copy()
            self._last[0] = token_id
            if self.num_left <= 0:
                return index
        return None
