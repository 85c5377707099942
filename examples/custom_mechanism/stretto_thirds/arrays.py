"""The rule on the arrays of a step."""

from stretto.engine.reply_rules import SegmentRules
from stretto.engine.rules import STATE, with_where
from stretto.engine.worker.segment_state import Rows
from stretto.engine.worker.slots import Array, Arrays, SlotTables
from stretto_thirds import rules as own_rules
from stretto_thirds.family import EveryThird


class RepeatedCodes:
    """State of all slots, in the column after the common ones, advanced by one row per call.

    Args:
        mechanism: The mechanism, which has no constants.
        rules: Rules of the family's replies.
        tables: Slot tables with the state.
        arrays: Array factory.
    """

    def __init__(self, mechanism: EveryThird, rules: SegmentRules, tables: SlotTables, arrays: Arrays):
        self._rules = with_where(arrays.xp.where, own_rules.__name__)
        self._last_code = arrays.wrap(tables.state)[:, len(STATE)]
        self._codes = rules.family.layout.audio[0]

    def __call__(self, token: Array, rows: Rows) -> Array:
        """Return stream 0 of each row, [B], for the sampled ids `token` [B]."""
        token, self._last_code[rows.slots] = self._rules.repeat_code(
            token, rows.frame, self._last_code[rows.slots], rows.in_audio, self._codes.start, self._codes.stop
        )
        return token
