"""The stretches of one reply, and the automaton that a row walks through.

    TEXT ──end_of_text──► TRANSITION ──forced rows──► AUDIO ──end_of_audio──► TAIL ──last code──► end
      └──end_of_reply──► end

    INTERLEAVED ──end_of_reply──► end

An interleaved reply is one stream of text and of codes, in whatever order the model draws them; nothing follows it.

What the model draws to end a segment may be another id (`Family.drawn_ends`). TAIL lasts until the slowest stream has
emitted the last frame; its last row carries `end_of_reply`. A family may do without: then its `end_of_audio` is its
`end_of_reply` (`streams/pattern.py`).
"""

from enum import IntEnum


class Segment(IntEnum):
    """The stretch of a reply that a row belongs to."""

    TEXT = 0
    TRANSITION = 1
    AUDIO = 2
    TAIL = 3
    INTERLEAVED = 4
