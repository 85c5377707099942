"""The segments of all replies in a batch, one row each, on the device: the vectorised twin of `tracker.py`."""

from dataclasses import dataclass

import torch

from python_backend.engine.rules import SegmentRules
from python_backend.engine.slots import SlotLimits, SlotScales, SlotState
from python_backend.families.base import Script
from python_backend.streams.segment import Segment

ENDLESS = 1 << 40


@dataclass
class Rows:
    """The rows that a step draws: where each stands, what it asked for, its row in the batch, its slot, its position.

    `advance` and `follow_script` move `state` on; index, slots and position are [B] int64.
    """

    state: SlotState
    limits: SlotLimits
    scales: SlotScales
    index: torch.Tensor
    slots: torch.Tensor
    position: torch.Tensor

    def __post_init__(self) -> None:
        state = self.state
        self.in_text = state.audio_start < 0
        self.in_transition = ~self.in_text & (self.position < state.audio_start)
        self.is_spoken = ~self.in_text & ~self.in_transition
        self.in_audio = self.is_spoken & (state.audio_end < 0)
        self.frame = self.position - state.audio_start  # also the audio row's index; meaningless before the audio


class SegmentMachine:
    """What each row may carry on stream 0, and what follows from what it carries."""

    def __init__(self, rules: SegmentRules, device: torch.device):
        family = rules.family
        self.rules, self.family, self.script = rules, family, family.script
        ends = [rules.end_of_text(task) for task in family.tasks]
        self._end_of_text = torch.tensor(ends, device=device)
        self._text_limit = torch.tensor([rules.text_limit(task) for task in family.tasks], device=device)
        self._speaks = torch.tensor([Segment.AUDIO in task.segments for task in family.tasks], device=device)
        self._transition = torch.tensor([*family.transition, family.layout.pad_id], device=device)
        self._denied = torch.ones(len(ends), 2, rules.num_text_ids, dtype=torch.bool, device=device)
        for index, task in enumerate(family.tasks):
            for ids in task.text:
                self._denied[index, :, ids.start : ids.stop] = False
            self._denied[index, 1, ends[index]] = False
        self._delays = torch.tensor(family.layout.delays[1:], device=device)

    def mask_text(self, logits: torch.Tensor, rows: Rows) -> torch.Tensor:
        """-inf where the text segment may not go: [B, V] -> [B, V]."""
        may_end = (rows.state.num_text_tokens >= rows.limits.text_min).long()
        return logits.masked_fill(self._denied[rows.limits.task, may_end], -torch.inf)

    def mask_audio(self, logits: torch.Tensor, rows: Rows) -> torch.Tensor:
        """-inf on `end_of_audio`, the last column, before the shortest length: [B, C0 + 1] -> [B, C0 + 1]."""
        logits = logits.clone()
        logits[:, -1].masked_fill_(rows.frame < rows.limits.audio_min, -torch.inf)
        return logits

    def end_text(self, token: torch.Tensor, rows: Rows) -> torch.Tensor:
        """`token` [B], or the segment's end where a limit is reached."""
        state, limits = rows.state, rows.limits
        must_end = (state.num_text_tokens >= limits.text_max) | (rows.position >= self._text_limit[limits.task])
        if self.script:
            must_end |= state.num_entries >= self.script.max_entries
        return torch.where(must_end, self._end_of_text[limits.task], token)

    def end_audio(self, token: torch.Tensor, rows: Rows) -> torch.Tensor:
        """`token` [B], or `end_of_audio` where a limit is reached."""
        must_end = (rows.frame >= rows.limits.audio_max) | (rows.position >= self.rules.audio_limit)
        return torch.where(must_end, self.family.end_of_audio, token)

    def follow_script(self, advance: torch.Tensor, rows: Rows, entries: torch.Tensor) -> torch.Tensor:
        """The frame tokens [B] when the pointers `advance` [B] or stay; entries [B, E + 1]. Moves the pointers."""
        script, state = self.script, rows.state
        assert script is not None
        is_last = state.pointer >= state.num_entries
        advance = advance | (state.pointer == 0)
        ends = advance & is_last & ((rows.frame >= rows.limits.audio_min) | (state.num_entries == 0))
        moves = advance & ~is_last
        state.pointer = state.pointer + (moves & rows.in_audio)
        entry = entries.gather(1, state.pointer[:, None]).squeeze(1)
        token = script.first_frame + 2 * (entry - script.spoken.start) + (~moves).long()
        return torch.where(ends, self.family.end_of_audio, token)

    def stay_column(self, rows: Rows, entries: torch.Tensor) -> torch.Tensor:
        """The column of the audio head that means "stay on this entry", [B]; any column before the first entry."""
        assert self.script is not None
        entry = entries.gather(1, rows.state.pointer[:, None]).squeeze(1)
        base = self.script.first_frame - self.family.layout.audio[0].start
        return (base + 2 * (entry - self.script.spoken.start) + 1).clamp(min=0)

    def choose(self, text: torch.Tensor | None, audio: torch.Tensor | None, rows: Rows) -> torch.Tensor:
        """Stream 0 of every row, [B]: what its segment drew, or what it is forced to be.

        `text` is None where no row is in a text segment, `audio` where all are.
        """
        if audio is None:
            assert text is not None
            return text
        state, family = rows.state, self.family
        length = state.audio_end - state.audio_start
        last = state.audio_end + torch.where(length > 0, self.rules.tail, 1)
        drain = torch.where(rows.position == last, family.end_of_reply, family.layout.pad_id)
        step = (rows.frame + len(family.transition)).clamp(0, len(family.transition))
        token = torch.where(rows.in_audio, audio, drain)
        token = torch.where(rows.in_transition, self._transition[step], token)
        return token if text is None else torch.where(rows.in_text, text, token)

    def place_codes(self, drawn: torch.Tensor | None, token: torch.Tensor, rows: Rows) -> torch.Tensor:
        """The streams 1 ... beside `token` [B]: `drawn` [B, K] where a frame lies, input-only ids, pad; [B, S - 1]."""
        layout = self.family.layout
        streams = [self._lay(drawn, token, rows)]
        for stream in range(layout.num_output_streams, layout.num_input_streams):
            streams.append(self._input_only(stream, token, rows)[:, None])
        return torch.cat(streams, 1)

    def _lay(self, drawn: torch.Tensor | None, token: torch.Tensor, rows: Rows) -> torch.Tensor:
        state, pad = rows.state, self.family.layout.pad_id
        if drawn is None:
            return token.new_full((len(token), len(self._delays)), pad)
        length = torch.where(state.audio_end < 0, ENDLESS, state.audio_end - state.audio_start)
        length = torch.where(rows.in_audio & (token == self.family.end_of_audio), rows.frame, length)
        frame = rows.frame[:, None] - self._delays
        lies = rows.is_spoken[:, None] & (frame >= 0) & (frame < length[:, None])
        return torch.where(lies, drawn, pad)

    def _input_only(self, stream: int, token: torch.Tensor, rows: Rows) -> torch.Tensor:
        script = self.script
        if script is None or stream != script.index_stream:
            return torch.full_like(token, self.family.layout.pad_id)
        writes = rows.in_text & self._is_spoken(token, script)
        speaks = rows.in_audio & (token != self.family.end_of_audio)
        ordinal = torch.where(rows.in_text, rows.state.num_entries + 1, rows.state.pointer)
        return torch.where(writes | speaks, script.index_base + ordinal, self.family.layout.pad_id)

    @staticmethod
    def _is_spoken(token: torch.Tensor, script: Script) -> torch.Tensor:
        return (token >= script.spoken.start) & (token < script.spoken.stop)

    def advance(self, token: torch.Tensor, rows: Rows) -> torch.Tensor:
        """Move the state on past `token` [B]; returns the script entry that it is, [B], 0 for none."""
        state, limits = rows.state, rows.limits
        ends_text = rows.in_text & (token == self._end_of_text[limits.task])
        begins_audio = ends_text & self._speaks[limits.task]
        start = rows.position + 1 + len(self.family.transition)
        state.audio_start = torch.where(begins_audio, start, state.audio_start)
        writes = rows.in_text & ~ends_text
        state.num_text_tokens = state.num_text_tokens + writes
        ends_audio = rows.in_audio & (token == self.family.end_of_audio)
        state.audio_end = torch.where(ends_audio, rows.position, state.audio_end)
        if self.script is None:
            return torch.zeros_like(token)
        is_entry = writes & self._is_spoken(token, self.script)
        state.num_entries = state.num_entries + is_entry
        return torch.where(is_entry, state.num_entries, 0)
