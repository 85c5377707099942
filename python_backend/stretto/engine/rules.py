"""Rules of a reply, each stated once, as pure functions of a row's state.

The values are integers and flags of one row (on the host), arrays of a batch (numpy or torch), or scalars and blocks of
a Triton kernel. So the functions use `where` instead of `if`, and `flag == 0` instead of `not`; an `if` may only test a
constant of the family. Each executor loads and stores values, reads tables, and has its own `where`:

    host     this module
    arrays   `with_where(numpy.where)` and `with_where(torch.where)`, as `Arrays.rules`
    kernels  `kernels/gpu/device_rules.py`, where Triton compiles the same source into the kernels

Arguments that many functions share:

    token                          id of stream 0: the sampled one if the function returns the id to write
    position                       position of the row
    frame                          index of the row in the audio
    in_text, in_audio, is_spoken   True if the row is in the text segment; in the audio segment; in it or after it
    audio_start, audio_end, num_text_tokens, num_codes, first_end
                                   state before the row (`STATE`)
    text_max, audio_max, tail_rows
                                   parameters of the request (`SlotLimits`)
    family                         constants of the family
"""
# mypy: allow-untyped-defs
# The rules have no annotations, because Triton would evaluate them. All arguments and results are such values.

from collections.abc import Callable
from importlib import util
from types import ModuleType
from typing import Any, NamedTuple

from stretto.engine import columns


def where(condition, chosen, other):
    """Return `chosen` if the condition is true, else `other`."""
    return chosen if condition else other


def with_where(select: Callable[..., Any], name: str = __name__) -> ModuleType:
    """Return a copy of this module, or of a mechanism's rules (module `name`), that uses `select` as `where`."""
    spec = util.find_spec(name)
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    vars(module)["where"] = select
    return module


STATE = tuple(columns.STATE)  # columns of a reply's state; those of a family follow them (`DrawRules.state`)


class ReplyConstants(NamedTuple):
    """Constants of a family's replies (see `SegmentRules` and `Family`).

    Attributes:
        last_kept: Last row, from the row that ends the audio, in which stream 0 has its sampled id (`Tail.last_kept`).
        cut_rows: Number of rows of the tail that are left out if a limit ended the audio (`Tail.cut_rows`).
        first_start, first_stop: Range of stream 0 in audio; in a family with latents, it begins with the id of a frame.
        interleaves: True if a reply may contain text and codes in one segment.
        hides_first: True if stream 0 is hidden from unconditional requests (`UnconditionalContext`).
        last_frame: Id of a latent frame in which speech ends; -1 for none.
    """

    pad_id: int
    end_of_audio: int
    end_of_reply: int
    num_tail_rows: int
    audio_limit: int
    last_kept: int
    cut_rows: int
    warm_up_is_sampled: bool
    first_start: int
    first_stop: int
    interleaves: bool
    hides_first: bool
    null_id: int
    last_frame: int


BEFORE_AUDIO = -1


# ----- segments and their ends


def segment_flags(position, audio_start, audio_end):
    """Return `in_text`, `is_spoken` and `in_audio` of a row."""
    in_text = audio_start < 0
    is_spoken = (in_text == 0) & (position >= audio_start)
    return in_text, is_spoken, is_spoken & (audio_end < 0)


def end_text(token, end_id, cut, num_text_tokens, text_max, position, text_limit, is_full):
    """Return stream 0 of a text row, and True if a length limit or the mechanism ends the text.

    Args:
        end_id: Id to write if the sampled id ends the text; negative if it does not.
        cut: Id to write if a limit ends the text.
        text_limit: Last position at which the text may end.
        is_full: True if the mechanism ends the text.
    """
    must_end = (num_text_tokens >= text_max) | (position >= text_limit) | is_full
    goes_on = end_id < 0
    is_cut = must_end & goes_on
    return where(is_cut, cut, where(goes_on, token, end_id)), is_cut


def follow_text(in_text, rows_to_audio, has_audio, position, audio_start, num_text_tokens):
    """Return `audio_start` and `num_text_tokens` after a row.

    `rows_to_audio` is the number of rows from the row to the audio; 0 if its id does not end the text.
    """
    goes_on = in_text & (rows_to_audio == 0)
    begins_audio = in_text & (rows_to_audio > 0) & has_audio
    return where(begins_audio, position + rows_to_audio, audio_start), num_text_tokens + goes_on


def count_codes(token, in_text, num_codes, family):
    """Return `num_codes` after a row of an interleaved reply, whose codes are in the text segment."""
    return num_codes + (in_text & (token >= family.first_start) & (token < family.first_stop))


def meets_limit(frame, audio_max, position, family):
    """Return True if a limit ends the audio in this row, whatever id was sampled."""
    return (frame >= audio_max) | (position >= family.audio_limit)


def end_audio(token, is_end, frame, audio_max, position, in_audio, family):
    """Return stream 0 of an audio row, and True if a limit ends the audio; `is_end` is True if the sampled id does."""
    must_end = meets_limit(frame, audio_max, position, family) & in_audio
    return where(is_end | must_end, family.end_of_audio, token), must_end & (is_end == 0)


# ----- noise of rows that are sampled again


def num_audio_rows(position, audio_start, num_codes, family):
    """Return the number of audio rows before a row, or BEFORE_AUDIO."""
    before = -1
    if family.interleaves:
        before = num_codes
    return where((audio_start < 0) | (position < audio_start), before, position - audio_start)


# ----- end frames and countdowns


def end_at_frame(token, is_end_frame, in_audio, may_end, family):
    """Return stream 0: the end-of-audio id if the row is the end frame and the audio may end, otherwise `token`."""
    return where(in_audio & may_end & is_end_frame, family.end_of_audio, token)


def count_down(token, is_cut, in_audio, position, first_end, tail_rows, family):
    """Return stream 0, `first_end` and `is_cut` (False once the countdown is over) of a row with a latent.

    Only the first frame in which speech ends is a `last_frame`. The audio ends `tail_rows` rows later.
    """
    is_last = in_audio & (token == family.last_frame) & (first_end < 0)
    token = where((token == family.last_frame) & (is_last == 0), family.first_start, token)
    first_end = where(is_last, position, first_end)
    is_over = is_after_end(in_audio, position, first_end, tail_rows)
    return where(is_over, family.end_of_audio, token), first_end, is_cut & (is_over == 0)


def is_after_end(in_audio, position, first_end, tail_rows):
    """Return True for an audio row at least `tail_rows` rows after `first_end` (negative if speech has not ended)."""
    return in_audio & (first_end >= 0) & (position - first_end >= tail_rows)


# ----- rows after the text


def rows_after_audio(position, audio_start, audio_end, audio_max, family):
    """Return the number of rows since the end of the audio, plus omitted rows of the tail if a limit ended it."""
    distance = position - audio_end
    if family.cut_rows > 0:
        is_cut = (audio_end - audio_start >= audio_max) | (audio_end >= family.audio_limit)
        distance = distance + family.cut_rows * is_cut
    return distance


def first_stream(audio, position, audio_start, audio_end, since_end, transition, family):
    """Return stream 0 of a row after the text.

    Args:
        audio: Id of an audio row; the sampled id in later rows.
        since_end: Distance of the row from the end of audio (`rows_after_audio`).
        transition: Id of a row between the text and the audio.
    """
    token = where(since_end <= family.last_kept, audio, family.pad_id)
    num_rows = where(audio_end > audio_start, family.num_tail_rows, 1)
    token = where(position - audio_end == num_rows, family.end_of_reply, token)
    return where(position < audio_start, transition, where(audio_end < 0, audio, token))


def rows_after_last(since_end, audio_end, ends_audio):
    """Return the number of rows since the row that ends the audio (very negative before it)."""
    return where(ends_audio, 0, where(audio_end < 0, -(1 << 30), since_end))


def keeps_sampled(is_spoken, has_begun, since_end, last_kept, family):
    """Return True if a stream after stream 0 keeps its sampled id in a row, and False if it has a pad.

    Args:
        has_begun: True from the row of the stream's first frame on.
        since_end: Distance of the row from the end of audio (`rows_after_last`).
        last_kept: Last row, from the row that ends the audio, in which the stream keeps its sampled id.
    """
    keeps = is_spoken & (since_end <= last_kept)
    if not family.warm_up_is_sampled:
        keeps = keeps & has_begun
    return keeps


def hide_first(token, family):
    """Return stream 0 of a row as the unconditional request of a CFG pair reads it (`UnconditionalContext`)."""
    if family.hides_first:
        token = where((token >= family.first_start) & (token < family.first_stop), family.null_id, token)
    return token


def hide_other(code, is_hidden, frame, delay, initial, family):
    """Do the same as `hide_first` for another stream, and hide codes of a recording before the stream's first frame."""
    if not family.warm_up_is_sampled:
        is_hidden = is_hidden | ((frame < delay) & (code != initial))
    return where(is_hidden, family.pad_id, code)
