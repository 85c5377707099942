"""Ids that close a segment: those that the model draws, and those that are written instead."""

import numpy as np

from stretto.engine.request.rules import SegmentRules
from stretto.engine.worker.arrays import Array, Arrays

AS_DRAWN = -1


def end_tables(rules: SegmentRules) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return lookup tables of segment ends.

    Returns:
        is_end: True if the id closes the text of the task, [tasks, ids + 1]; the last column is for all other ids.
        num_rows: Number of rows from that id to the audio, [tasks, ids + 1].
        written: Id written for a drawn end, by task; `AS_DRAWN` to keep it.
        cut: Id written where a limit closes the text, by task.
    """
    tasks = rules.family.tasks
    drawn, closings = [rules.drawn_ends_of_text(task) for task in tasks], [rules.closings(task) for task in tasks]
    last = 1 + max((token for ids in (*drawn, *closings) for token in ids), default=0)
    is_end, num_rows = np.zeros((len(tasks), last + 1), np.bool_), np.zeros((len(tasks), last + 1), np.int64)
    for index, ids in enumerate(drawn):
        is_end[index, list(ids)] = True
        num_rows[index, list(closings[index])] = list(closings[index].values())
    written = [rules.end_of_text(task) for task in tasks]
    cut = np.array([rules.cut_of_text(task) for task in tasks])
    return is_end, num_rows, np.array([AS_DRAWN if end is None else end for end in written]), cut


class SegmentEnds:
    """Segment ends for the rows of a batch."""

    def __init__(self, rules: SegmentRules, arrays: Arrays):
        self._xp, self._end_of_audio = arrays.xp, rules.family.end_of_audio
        self._ends_of_audio = rules.drawn_ends_of_audio
        is_end, num_rows, written, cut = end_tables(rules)
        self._last = is_end.shape[1] - 1
        self._keeps_drawn = bool((written == AS_DRAWN).any())
        self._written, self._cut = arrays.upload(written), arrays.upload(cut)
        self._is_end, self._num_rows = arrays.upload(is_end), arrays.upload(num_rows)

    def text(self, token: Array, task: Array, must_end: Array) -> tuple[Array, Array]:
        """Return the ids written into text rows, and flags of segments closed by a limit."""
        is_end, written = self._is_end[task, self._column(token)], self._written[task]
        if self._keeps_drawn:
            written = self._xp.where(written == AS_DRAWN, token, written)
        is_cut = must_end & ~is_end
        return self._xp.where(is_end, written, self._xp.where(is_cut, self._cut[task], token)), is_cut

    def audio(self, token: Array, must_end: Array) -> tuple[Array, Array]:
        """Return the ids written into audio rows, and flags of segments closed by a limit."""
        is_end = token != token
        for end in self._ends_of_audio:
            is_end = is_end | (token == end)
        return self._xp.where(is_end | must_end, self._end_of_audio, token), must_end & ~is_end

    def num_rows(self, token: Array, task: Array) -> Array:
        """Return the number of rows from `token` to the audio, or 0 if the text goes on."""
        return self._num_rows[task, self._column(token)]

    def _column(self, token: Array) -> Array:
        return self._xp.clip(token, 0, self._last)
