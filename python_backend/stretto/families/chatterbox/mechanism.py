"""Track of the learned positions of a reply's rows."""

from collections.abc import Sequence

from stretto.engine.reply_rules import SegmentRules
from stretto.engine.tracks import Track, rows_of
from stretto.families.chatterbox.family import PositionStream


def begin_track(
    positions: PositionStream, rules: SegmentRules, first_row: int, ids: Sequence[int], is_open: bool
) -> Track:
    """Return the positions of all rows that a reply may have.

    Args:
        positions: The stream and its ids.
        rules: Rules of the family's replies.
        first_row: First row of the reply.
        ids: Unused, because the positions do not depend on the request.
        is_open: Unused.
    """
    known, streams = positions.ids[: rules.max_model_len - first_row], positions.streams
    lanes = slice(streams.start - 1, streams.stop - 1)
    return Track(lanes, first_row, rows_of(known, 1), rules.family.layout.pad_id)
