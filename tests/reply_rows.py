"""Rows of replies that no engine has generated, with the state that a step would send with them."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from stretto.engine.reply_rules import ReplyState
from stretto.engine.utterance import Utterance
from stretto.families.tiny.family import AlignmentPointer
from stretto.records.chunk import LMChunk
from stretto.streams.layout import Segment


def push(reply: ReplyState, token: int) -> list[int]:
    """Advance a reply by a row with `token` on stream 0, and return the state columns that are sent with the row."""
    rules, family = reply.rules, reply.rules.family
    if reply.segment in (Segment.TEXT, Segment.INTERLEAVED):
        rows_to_audio = rules.closings(reply.task).get(token, 0)
        if rows_to_audio == 0:
            reply.num_text_tokens += 1
            reply.num_codes += reply.segment is Segment.INTERLEAVED and token in family.layout.audio[0]
            if isinstance(script := family.drawing, AlignmentPointer) and token in script.spoken:
                reply.own_values = (reply.own_values[0] + 1, reply.own_values[1])
        elif reply.task.has_audio_segment:
            reply.audio_start = reply.position + rows_to_audio
    elif reply.segment is Segment.AUDIO:
        if token == family.end_of_audio:
            reply.audio_end = reply.position
        elif isinstance(script := family.drawing, AlignmentPointer):
            reply.own_values = (reply.own_values[0], reply.own_values[1] + ((token - script.first_frame) % 2 == 0))
        elif rules.has_countdown and token == family.layout.audio[0][1] and reply.first_end < 0:
            reply.first_end = reply.position
        if rules.text_rows is not None and token in rules.text_rows.ids:
            reply.own_values = (reply.own_values[0] + 1, *reply.own_values[1:])
    values = reply.values(rules.sent_state)
    reply.move(reply.position + 1, values)
    return values


def states_of(reply: ReplyState, tokens: Iterable[int]) -> list[list[int]]:
    """Advance a reply by rows with `tokens` on stream 0; return the state columns of each, [n][C]."""
    return [push(reply, token) for token in tokens]


def with_states(reply: ReplyState, rows: np.ndarray) -> np.ndarray:
    """Return the next rows of a reply, [n, 1 + W] with a guidance mark first, with the state columns after them."""
    states = states_of(replace(reply), rows[:, 1].tolist())
    return np.column_stack([rows, np.reshape(states, (len(rows), len(reply.rules.sent_state)))]).astype(np.int64)


def chunks_in(utterance: Utterance, rows: np.ndarray) -> Iterator[LMChunk]:
    """Push the next rows of a reply, [n, 1 + W] with a guidance mark first, with the state columns after them."""
    yield from utterance.push(with_states(utterance.reply, rows))
