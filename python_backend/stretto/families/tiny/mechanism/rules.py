"""Rules of the alignment pointer: functions of a row's state that numpy, torch and Triton execute (`engine.rules`).

The arguments `num_entries` and `pointer` are the columns of `AlignmentPointer` before the row, and `script` has its
constants (`PointerConstants`).
"""
# mypy: allow-untyped-defs

from stretto.engine.rules import where


def move_pointer(advances, pointer, num_entries, may_end, in_audio):
    """Return the new pointer, True if the row is the first one of an entry, and True if the audio ends.

    Args:
        advances: True if the model advances; at pointer 0, it always does.
        pointer: Number of the current entry, from 1; 0 before the first.
        may_end: True if the audio has its minimum length; audio without entries may always end.
        in_audio: True in the audio segment, but not in a row in which a limit ends it; in other rows, only the pointer
            has a meaning.
    """
    is_last = pointer >= num_entries
    advances = advances | (pointer == 0)
    moves = advances & (is_last == 0)
    ends = advances & is_last & (may_end | (num_entries == 0))
    return pointer + (moves & in_audio), moves, ends


def pointer_token(entry, moves, ends, script):
    """Return stream 0 of an audio row: each spoken token has an id for its first row, and one for later rows."""
    token = script.first_frame + 2 * (entry - script.spoken_start) + (moves == 0)
    return where(ends, script.end_of_audio, token)


def stay_column(entry, pointer, script):
    """Return the column of the audio head that keeps the pointer on `entry`; before the first entry, any column."""
    return where(pointer > 0, script.first_frame - script.first_id + 1 + 2 * (entry - script.spoken_start), 0)


def pointer_index(token, in_text, in_audio, num_entries, pointer, script):
    """Return the id of the index stream: the number of the entry that a row adds or speaks, or a pad."""
    has_entry = (in_text & is_entry(token, script)) | (in_audio & (token != script.end_of_audio))
    return where(has_entry, script.index_base + where(in_text, num_entries + 1, pointer), script.pad_id)


def is_entry(token, script):
    """Return True if a text token becomes an entry."""
    return (token >= script.spoken_start) & (token < script.spoken_stop)
