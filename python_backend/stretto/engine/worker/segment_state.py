"""Segment state of all replies in a batch: masks, forced ids, and the ends of segments and streams."""

from dataclasses import dataclass

import numpy as np
import torch

from stretto.engine.columns import Array, SlotLimits, SlotScales, SlotState
from stretto.engine.reply_rules import SegmentRules
from stretto.engine.rules import segment_flags
from stretto.engine.worker.batch_plan import pick
from stretto.engine.worker.slots import Arrays
from stretto.streams.layout import Segment

NO_END = -1


def end_tables(rules: SegmentRules) -> np.ndarray:
    """Return lookup tables of the ids that end a text, int64 [2, tasks, ids + 1]; the last column is for other ids.

    The first table has the id to write instead of a sampled id that ends the text, or `NO_END`. The second has the
    number of rows from the row with an id to the audio, or 0 if the text continues.
    """
    tasks = rules.family.tasks
    drawn = [rules.drawn_ends_of_text(task) for task in tasks]
    closings = [rules.closings(task) for task in tasks]
    num_ids = 1 + max((token for ids in (*drawn, *closings) for token in ids), default=0)
    tables = np.zeros((2, len(tasks), num_ids + 1), np.int64)
    tables[0] = NO_END
    for index, (task, ids) in enumerate(zip(tasks, drawn, strict=True)):
        end = rules.end_of_text(task)
        tables[0, index, list(ids)] = ids if end is None else end
        tables[1, index, list(closings[index])] = list(closings[index].values())
    return tables


@dataclass
class Rows:
    """Rows that a step samples: state (updated by `SegmentState`), parameters, slots and positions, [B] each.

    Attributes:
        is_spoken: True if the row is in the audio segment or after it.
        frame: Index of the row in the audio; meaningless before the audio.
        is_cut: True if a limit ends a segment in this row.
    """

    state: SlotState
    limits: SlotLimits
    scales: SlotScales
    slots: Array
    position: Array

    def __post_init__(self) -> None:
        state = self.state
        self.in_text, self.is_spoken, self.in_audio = segment_flags(self.position, state.audio_start, state.audio_end)
        self.frame = self.position - state.audio_start
        self.is_cut = self.in_text & self.in_audio


class SegmentState:
    """Logit masks and forced ids for each segment, and the resulting updates to the rows' state.

    Tokens and positions are [B]. `index` is the array of rows whose logits are passed; None means all.
    """

    def __init__(self, rules: SegmentRules, arrays: Arrays):
        family = rules.family
        self.rules = rules
        self.family = family
        self._arrays = arrays
        self._xp = arrays.xp
        self._rules = arrays.rules
        self._constants = rules.constants
        self._ends = arrays.upload(end_tables(rules))
        self._cut = arrays.upload(np.array([rules.cut_of_text(task) for task in family.tasks]))
        self._text_limit = arrays.upload(np.array([rules.text_limit(task) for task in family.tasks]))
        self._speaks = arrays.upload(np.array([Segment.AUDIO in task.segments for task in family.tasks]))
        self._transition = arrays.upload(np.array([*family.transition, family.layout.pad_id]))
        self._denied = arrays.tensor(arrays.upload(denied_text(rules)))
        num_drawn = family.layout.num_output_streams - 1
        self._delays, self._kept = (arrays.upload(rules.other_streams[row, :num_drawn]) for row in (0, 3))
        places = family.layout.frame_codec.places
        self._out_of_place = arrays.tensor(arrays.upload(out_of_place(rules))) if places else None

    def mask_text(self, logits: torch.Tensor, rows: Rows, index: Array | None) -> torch.Tensor:
        """Mask, in place, `logits` [W, V] of ids that the text may not contain, and of end ids if it is too short."""
        may_end = (rows.state.num_text_tokens >= rows.limits.text_min) * 1
        task, may_end = (self._arrays.tensor(pick(values, index)) for values in (rows.limits.task, may_end))
        return logits.masked_fill_(self._denied[task, may_end], -torch.inf)

    def mask_audio(
        self, logits: torch.Tensor, rows: Rows, index: Array | None, is_hidden: Array | None = None
    ) -> torch.Tensor:
        """Mask, in place, end ids before the minimum length, and codes that belong in other rows of a frame.

        Args:
            logits: Logits of stream 0 in audio, [A, C0 + E]; the last E columns are end ids.
            is_hidden: True for end ids to mask, [B, E]; None to mask all of them before the minimum length.
        """
        if self._out_of_place is not None:
            row_of_frame = self._arrays.tensor(pick(rows.frame % len(self._out_of_place), index))
            logits.masked_fill_(self._out_of_place[row_of_frame], -torch.inf)
        ends = logits[:, logits.shape[1] - self.rules.num_end_columns[0] :]
        is_hidden = (rows.frame < rows.limits.audio_min)[:, None] if is_hidden is None else is_hidden
        ends.masked_fill_(self._arrays.tensor(pick(is_hidden, index)), -torch.inf)
        return logits

    def mask_other_ends(self, logits: torch.Tensor, rows: Rows, index: Array | None) -> torch.Tensor:
        """Mask, in place, the end ids of other streams in `logits` [A, k, C] of rows before the minimum length."""
        is_short = self._arrays.tensor(pick(rows.frame < rows.limits.audio_min, index))
        logits[..., -1].masked_fill_(is_short[:, None], -torch.inf)
        return logits

    def end_text(self, token: Array, rows: Rows, is_full: Array | bool = False) -> Array:
        """Return the ids to write in text rows, [B]; set `rows.is_cut` if a limit ends the text.

        A sampled end id is replaced by the task's end-of-text id, if it has one. At a limit, or if a mechanism ends the
        text (`is_full`), the id is that of `SegmentRules.cut_of_text`.
        """
        state = rows.state
        limits = rows.limits
        task = rows.limits.task
        token, is_cut = self._rules.end_text(
            token, self._ends[0, task, self._column(token)], self._cut[task], state.num_text_tokens, limits.text_max,
            rows.position, self._text_limit[task], is_full,
        )  # fmt: skip
        rows.is_cut = rows.is_cut | (is_cut & rows.in_text)
        return token

    def _column(self, token: Array) -> Array:
        return self._xp.clip(token, 0, self._ends.shape[2] - 1)

    def end_audio(self, token: Array, rows: Rows) -> Array:
        """Return `token` with `end_of_audio` where the audio ends; set `rows.is_cut` where a limit ends it."""
        is_end = token != token
        for end in self.rules.written_ends_of_audio:
            is_end = is_end | (token == end)
        token, is_cut = self._rules.end_audio(
            token, is_end, rows.frame, rows.limits.audio_max, rows.position, rows.in_audio, self._constants
        )
        rows.is_cut = rows.is_cut | is_cut
        return token

    def end_frame(self, token: Array, codes: Array, rows: Rows) -> Array:
        """Return `token` with `end_of_audio` where stream 0 and `codes` [B, K] are the end frame."""
        first, *others = self.family.end_frame
        is_end_frame = token == first
        may_end = rows.frame >= rows.limits.audio_min
        for stream, code in enumerate(others):
            is_end_frame = is_end_frame & (codes[:, stream] == code)
        return self._rules.end_at_frame(token, is_end_frame, rows.in_audio, may_end, self._constants)

    def count_down(self, token: Array, rows: Rows) -> Array:
        """Return stream 0 of audio rows with latents, [B]; update `first_end` and `is_cut` (`rules.count_down`)."""
        token, rows.state.first_end, rows.is_cut = self._rules.count_down(
            token, rows.is_cut, rows.in_audio, rows.position, rows.state.first_end, rows.limits.tail_rows,
            self._constants,
        )  # fmt: skip
        return token

    def choose(self, text: Array | None, audio: Array | None, rows: Rows) -> Array:
        """Return stream 0 of every row, [B]: the id sampled for the row's segment, or a forced id."""
        if audio is None:
            assert text is not None
            return text
        state = rows.state
        family = self.family
        step = self._xp.clip(rows.frame + len(family.transition), 0, len(family.transition))
        token = self._rules.first_stream(
            audio, rows.position, state.audio_start, state.audio_end, self._since_end(rows), self._transition[step],
            self._constants,
        )  # fmt: skip
        return token if text is None else self._xp.where(rows.in_text, text, token)

    def _since_end(self, rows: Rows) -> Array:
        position = rows.position
        state = rows.state
        limits = rows.limits
        columns = state.audio_start, state.audio_end, limits.audio_max
        return self._rules.rows_after_audio(position, *columns, self._constants)

    def place_codes(self, drawn: Array | None, token: Array, rows: Rows, forced: Array | None = None) -> Array:
        """Return streams 1 to S - 1 of every row, [B, S - 1]: sampled ids, forced ids or pads.

        Args:
            forced: Ids of streams that continue audio in the prompt, [B, S - 1], or None.
        """
        layout = self.family.layout
        codes = self._arrays.zeros(len(token), layout.num_input_streams - 1) + layout.pad_id
        if drawn is not None:
            codes[:, : layout.num_output_streams - 1] = self._lay(drawn, token, rows, forced)
        return codes

    def _lay(self, drawn: Array, token: Array, rows: Rows, forced: Array | None) -> Array:
        state = rows.state
        family = self.family
        where = self._xp.where
        has_begun = rows.frame[:, None] >= self._delays
        ends_audio = rows.in_audio & (token == family.end_of_audio)
        since_end = self._rules.rows_after_last(self._since_end(rows), state.audio_end, ends_audio)
        columns = rows.is_spoken[:, None], has_begun, since_end[:, None], self._kept
        keeps = self._rules.keeps_sampled(*columns, self._constants)
        laid = where(keeps, drawn, family.layout.pad_id)
        if forced is None:
            return laid
        is_forced = (rows.position < rows.limits.forced_until)[:, None] & ~has_begun
        return where(is_forced, forced[:, : drawn.shape[1]], laid)

    def advance(self, token: Array, rows: Rows, may_write: bool) -> None:
        """Update the state for rows with `token` [B] on stream 0."""
        state = rows.state
        task = rows.limits.task
        where = self._xp.where
        ends_audio = rows.in_audio & (token == self.family.end_of_audio)
        state.audio_end = where(ends_audio, rows.position, state.audio_end)
        if not may_write:
            return
        if self._constants.interleaves:
            state.num_codes = self._rules.count_codes(token, rows.in_text, state.num_codes, self._constants)
        rows_to_audio = self._ends[1, task, self._column(token)]
        state.audio_start, state.num_text_tokens = self._rules.follow_text(
            rows.in_text, rows_to_audio, self._speaks[task], rows.position, state.audio_start, state.num_text_tokens
        )


def denied_text(rules: SegmentRules) -> np.ndarray:
    """Return a mask of the ids that are forbidden in a text segment, bool [tasks, 2, V].

    On axis 1, index 0 means that the text may not end yet, and index 1 that it may.
    """
    tasks = rules.family.tasks
    denied = np.ones((len(tasks), 2, rules.num_text_ids), np.bool_)
    for index, task in enumerate(tasks):
        for ids in task.text:
            denied[index, :, ids.start : ids.stop] = False
        denied[index, :, list(rules.drawn_ends_of_text(task))] = True, False  # `task.text` may contain them
    return denied


def out_of_place(rules: SegmentRules) -> np.ndarray:
    """Return a mask of audio-head columns forbidden in each row of a frame, bool [n, C0 + E].

    Each row has its own range of codes, and only the first row may end the audio.
    """
    places = rules.family.layout.frame_codec.places
    ids = np.array(rules.audio_ids(0))
    denied = np.ones((len(places), len(ids) + len(rules.drawn_ends_of_audio)), np.bool_)
    for row, codes in enumerate(places):
        denied[row, : len(ids)] = (ids < codes.start) | (ids >= codes.stop)
    denied[:1, len(ids) :] = False
    return denied
