"""Rules of the `Staircase`: functions of a row's state that numpy, torch and Triton execute (`engine.rules`).

`first_end` is the first position at which any stream sampled its EOS id; negative for none.
"""
# mypy: allow-untyped-defs

from stretto.engine.rules import where


def num_ended(position, first_end):
    """Return the number of streams that have ended before a row: one more per row from the first end on."""
    return where(first_end < 0, 0, position - first_end)


def ended_id(token, stream, num_ended, end):
    """Return the id of a stream: its EOS id after its last frame, and otherwise `token`."""
    return where(stream < num_ended, end, token)


def stair_id(token, frame, delay, begin, stream, num_ended, end):
    """Return the id of a stream: BOS before its first frame, EOS after its last one, and otherwise `token`."""
    return ended_id(where(frame < delay, begin, token), stream, num_ended, end)


def follow_end(is_end, position, first_end):
    """Return `first_end` after an audio row, in which a stream ends if `is_end` is True."""
    return where(is_end & (first_end < 0), position, first_end)
