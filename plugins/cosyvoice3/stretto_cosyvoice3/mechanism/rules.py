"""Rules of rows with text instead of frames, as functions of a row's state for numpy, torch and Triton.

`num_given`, `num_in_group` and `num_first` are the columns of `CodeRules`; `groups` are its constants.
"""
# mypy: allow-untyped-defs

from stretto.engine.rules import where


def hides_end(is_fill, is_short, is_free):
    """Return True if an end id may not be sampled. While given rows are left, only the end of a group may be.

    Args:
        is_fill: True for the id that ends a group.
        is_short: True before the minimum length.
        is_free: True if no given rows are left.
    """
    return where(is_fill, is_short & is_free, is_short | (is_free == 0))


def lay_row(token, goes_on, num_given, num_in_group, num_first, track_total, end_of_audio, groups):
    """Decide whether the next row of a reply reads a word of the text (a given row, see `TextGroups`) or is sampled.

    Return its id on stream 0, True if it is given, and `num_given` and `num_in_group` after it.

    Args:
        goes_on: True in an audio row in which no limit ends the audio.
        track_total: Number of given rows of the reply.
    """
    is_next = (num_given < num_first) | ((num_given - num_first) % groups.num_words > 0)
    is_first = (num_in_group >= groups.num_frames) | (token == groups.fill_id)
    is_given = goes_on & (num_given < track_total) & (is_next | is_first)
    given_or_fill = where(is_next, groups.given_id, groups.fill_id)
    is_end = (num_given >= track_total) & ((token == groups.fill_id) | (token == groups.given_id))
    num_in_group = where(is_given & (is_next == 0), 0, num_in_group + (goes_on & (is_given == 0)))
    token = where(is_given, given_or_fill, where(is_end, end_of_audio, token))
    return token, is_given, num_given + is_given, num_in_group
