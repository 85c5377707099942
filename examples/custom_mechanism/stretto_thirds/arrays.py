"""The rule, applied to the arrays of a step."""

from typing import Any

from stretto.engine.rules import STATE, with_where
from stretto.engine.worker.sampler import RowDraw
from stretto.engine.worker.segment_state import Rows
from stretto.engine.worker.slots import Array
from stretto_thirds import rules as own_rules
from stretto_thirds.family import EveryThird


class RepeatedCodes(RowDraw):
    """Sampler of rows that repeats codes. Its state is the column after the common ones."""

    def __init__(self, drawing: EveryThird, *given: Any):
        super().__init__(*given)
        self._rules = with_where(self.arrays.xp.where, own_rules.__name__)
        self._last_code = self.arrays.wrap(self.tables.state)[:, len(STATE)]
        self._first_codes = self.segments.family.layout.audio[0]

    def replace_first(self, token: Array, rows: Rows) -> Array:
        """Return stream 0 of each row, [B], for the sampled ids `token` [B]."""
        codes = self._first_codes
        token, self._last_code[rows.slots] = self._rules.repeat_code(
            token, rows.frame, self._last_code[rows.slots], rows.in_audio, codes.start, codes.stop
        )
        return token
