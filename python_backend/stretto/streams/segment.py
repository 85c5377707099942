"""Segments of one reply, and the automaton that its rows follow.

    TEXT ──end_of_text──► TRANSITION ──forced rows──► AUDIO ──end_of_audio──► TAIL ──last code──► end
      └──end_of_reply──► end

    INTERLEAVED ──end_of_reply──► end

An interleaved reply is one stream of text ids and codes, in the order in which the model draws them.

The id that the model draws to end a segment may differ from the id written (`Family.drawn_ends`). TAIL lasts until the
most delayed stream has completed the last frame; its last row carries `end_of_reply`. In a family without a tail
`end_of_audio` equals `end_of_reply` (see `pattern.py`).
"""

from enum import IntEnum


class Segment(IntEnum):
    """Segment of a reply to which a row belongs."""

    TEXT = 0
    TRANSITION = 1
    AUDIO = 2
    TAIL = 3
    INTERLEAVED = 4
