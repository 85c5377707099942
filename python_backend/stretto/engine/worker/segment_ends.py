"""What closes a segment of a reply: what the model draws for it, and what is written in its place."""

import numpy as np

from stretto.engine.request.rules import SegmentRules
from stretto.engine.worker.arrays import Array, Arrays

AS_DRAWN = -1


class SegmentEnds:
    """The rules' tables of it, by task and token id. Ids that close nothing share the last column."""

    def __init__(self, rules: SegmentRules, arrays: Arrays):
        family, tasks = rules.family, rules.family.tasks
        self._xp, self._end_of_audio, self._ends_of_audio = arrays.xp, family.end_of_audio, rules.drawn_ends_of_audio
        drawn, closings = [rules.drawn_ends_of_text(task) for task in tasks], [rules.closings(task) for task in tasks]
        self._last = 1 + max(token for ids in (*drawn, *closings) for token in ids)
        is_end, num_rows = (
            np.zeros((len(tasks), self._last + 1), np.bool_),
            np.zeros((len(tasks), self._last + 1), np.int64),
        )
        for index, ids in enumerate(drawn):
            is_end[index, list(ids)] = True
            num_rows[index, list(closings[index])] = list(closings[index].values())
        written = [rules.end_of_text(task) for task in tasks]
        self._written = arrays.upload(np.array([AS_DRAWN if end is None else end for end in written]))
        self._cut = arrays.upload(np.array([rules.cut_of_text(task) for task in tasks]))
        self._keeps_drawn = None in written
        self._is_end, self._num_rows = arrays.upload(is_end), arrays.upload(num_rows)

    def text(self, token: Array, task: Array, must_end: Array) -> tuple[Array, Array]:
        """What stands in rows of text where `token` was drawn, and where a limit closed the segment, not the model."""
        is_end, written = self._is_end[task, self._column(token)], self._written[task]
        if self._keeps_drawn:
            written = self._xp.where(written == AS_DRAWN, token, written)
        is_cut = must_end & ~is_end
        return self._xp.where(is_end, written, self._xp.where(is_cut, self._cut[task], token)), is_cut

    def audio(self, token: Array, must_end: Array) -> tuple[Array, Array]:
        """The same of rows of audio."""
        is_end = token == self._ends_of_audio[0]
        for end in self._ends_of_audio[1:]:
            is_end = is_end | (token == end)
        return self._xp.where(is_end | must_end, self._end_of_audio, token), must_end & ~is_end

    def num_rows(self, token: Array, task: Array) -> Array:
        """How many rows behind `token` audio may begin; 0 where the text goes on."""
        return self._num_rows[task, self._column(token)]

    def _column(self, token: Array) -> Array:
        return self._xp.clip(token, 0, self._last)
