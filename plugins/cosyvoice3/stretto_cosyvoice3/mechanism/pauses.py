"""Filter of the frames of a reply, which shortens pauses."""

import numpy as np

from stretto_cosyvoice3.family import Quiet


class PauseFilter:
    """Filter that omits the frames of a pause beyond its first ones."""

    def __init__(self, pauses: Quiet):
        self._quiet = set(pauses.codes)
        self._max_quiet = pauses.most
        self._num_quiet = 0  # successive quiet frames so far

    def __call__(self, codes: np.ndarray, is_code: np.ndarray) -> np.ndarray:
        """Return a mask of the next frames to keep, bool [n], given their codes [1, n]."""
        is_kept = np.ones(codes.shape[1], np.bool_)
        for index, code in enumerate(codes[0].tolist()):
            self._num_quiet = self._num_quiet + 1 if code in self._quiet else 0
            is_kept[index] = self._num_quiet <= self._max_quiet
        return is_kept
