"""The segment state goes through the segments that the sampled ids imply, whatever they are.

numpy and torch differ in `where`.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from stretto.engine.columns import STATE, Array, SlotLimits, SlotScales, SlotState
from stretto.engine.reply_rules import ReplyState, SegmentRules
from stretto.engine.worker.segment_state import Rows, SegmentState
from stretto.engine.worker.slots import Arrays, DeviceArrays, HostArrays, SlotTables
from stretto.families.opuslm.family import PADDED_TAIL
from stretto.families.tiny.family import TINY
from stretto.family.base import Family
from stretto.records.sampling import SamplingConfig
from stretto.streams.layout import FORCED_TAIL, PADDED_WARM_UP
from stretto.testing.checkpoints import make_prompt
from tests.reply_rows import push
from tests.small_vocabularies import BAGPIPER, DIALOGUE
from tests.speech_families import EIGHT_STREAMS

SLOTS, LENGTH = 6, 96


class Walk:
    """Replies in all slots, advanced by the segment state with random tokens."""

    def __init__(self, family: Family, seed: int, arrays: Arrays):
        self.family, self.rules, self.arrays = family, SegmentRules(family, LENGTH), arrays
        self.random = np.random.default_rng(seed)
        self.tables = SlotTables(SLOTS, self.rules, torch.device("cpu"))
        self.segments = SegmentState(self.rules, arrays)
        self.sampling = list[SamplingConfig]()
        self.replies = [self._start(slot) for slot in range(SLOTS)]
        self.tables.apply_staged(arrays)
        self.slots = arrays.upload(np.arange(SLOTS))

    def _start(self, slot: int) -> ReplyState:
        prompt = make_prompt(self.family, int(self.random.integers(100)))
        sampling = prompt.sampling
        sampling = replace(sampling, audio=replace(sampling.audio, min_rows=int(self.random.integers(0, 9))))
        self.sampling.append(sampling)
        reply = ReplyState.begin(self.rules, self.family.task(prompt.task), len(prompt.rows) % 40 + 1)
        codes = np.zeros((reply.position, self.family.layout.num_input_streams - 1), np.int32)
        prompt = replace(prompt, sampling=sampling, rows=prompt.rows[: reply.position], delayed_tail=None)
        self.tables.stage(slot, prompt, reply, codes)
        return reply

    def step(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Generate one row of every reply; return stream 0 and the other streams."""
        wrap, upload = self.arrays.wrap, self.arrays.upload
        state = SlotState(*wrap(self.tables.state)[self.slots][:, : len(STATE)].T)
        limits = SlotLimits(*upload(self.tables.limits.T))
        scales = SlotScales.from_columns(upload(self.tables.scales.T))
        position = upload(np.array([reply.position for reply in self.replies]))
        rows = Rows(state, limits, scales, self.slots, position)
        token = self.segments.choose(self._text(rows), self._audio(rows), rows)
        self.was_cut = rows.is_cut.tolist()
        drawn = np.tile([ids.start + 3 for ids in self.family.layout.audio[1:]], (SLOTS, 1))
        codes = self.segments.place_codes(upload(drawn), token, rows)
        self.segments.advance(token, rows, bool(rows.in_text.any()))
        for column, name in enumerate(STATE):
            wrap(self.tables.state)[:, column] = getattr(rows.state, name)
        return self.arrays.tensor(token), self.arrays.tensor(codes)

    def _text(self, rows: Rows) -> Array:
        noise = self.random.random((SLOTS, self.rules.num_text_ids))
        for slot, reply in enumerate(self.replies):
            noise[slot, list(self.rules.drawn_ends_of_text(reply.task))] += self.random.random() < 0.1
        token = self.segments.mask_text(torch.from_numpy(noise), rows, None).argmax(-1)
        self.drawn_text = token.tolist()
        return self.segments.end_text(self.arrays.wrap(token), rows)

    def _audio(self, rows: Rows) -> Array:
        ids = torch.tensor([*self.family.layout.audio[0][:11], *self.rules.drawn_ends_of_audio])
        noise = torch.from_numpy(self.random.random((SLOTS, len(ids))))
        token = ids[self.segments.mask_audio(noise, rows, None).argmax(-1)]
        self.drawn_audio = token.tolist()
        return self.segments.end_audio(self.arrays.wrap(token), rows)

    def is_cut(self, slot: int) -> bool:
        """Return True if a limit, and not the model, ends the segment of `slot` with the row just sampled."""
        reply, sampling, rules = self.replies[slot], self.sampling[slot], self.rules
        if reply.audio_start < 0:
            meets = reply.num_text_tokens >= sampling.text.max_rows
            meets |= reply.position >= rules.text_limit(reply.task)
            return meets and self.drawn_text[slot] not in rules.drawn_ends_of_text(reply.task)
        if reply.position < reply.audio_start or reply.audio_end >= 0:
            return False
        return self.meets_limit(slot, reply.position) and self.drawn_audio[slot] not in rules.drawn_ends_of_audio

    def meets_limit(self, slot: int, position: int) -> bool:
        """Return True if the audio of `slot` must end at `position`."""
        num_rows = position - self.replies[slot].audio_start
        return num_rows >= self.sampling[slot].audio.max_rows or position >= self.rules.audio_limit


@pytest.mark.parametrize("family", [TINY, EIGHT_STREAMS, BAGPIPER, DIALOGUE], ids=lambda family: family.name)
@pytest.mark.parametrize(
    ("arrays", "seed"),
    [*((HostArrays(), seed) for seed in range(3)), (DeviceArrays(torch.device("cpu")), 3)],
    ids=["numpy-0", "numpy-1", "numpy-2", "torch-3"],
)
def test_segment_state_follows_the_ids_row_by_row(family: Family, arrays: Arrays, seed: int) -> None:
    walk = Walk(family, seed, arrays)
    alive = set(range(SLOTS))
    cuts = 0
    while alive:
        token, codes = walk.step()
        for slot in list(alive):
            reply = walk.replies[slot]
            position = reply.position
            assert walk.was_cut[slot] == walk.is_cut(slot), (slot, position)
            cuts += walk.was_cut[slot]
            push(reply, int(token[slot]))
            if token[slot] == family.end_of_reply:
                alive.remove(slot)
                assert position < LENGTH
                continue
            after = [int(value) for value in walk.tables.state[slot, : len(STATE)]]
            assert after == reply.values(STATE), (slot, position)
            skips = reply.audio_end >= 0 and walk.meets_limit(slot, reply.audio_end)
            check_codes(family, reply, position, codes[slot].tolist(), skips)
        for slot in set(range(SLOTS)) - alive:
            walk.replies[slot].position += 1
    assert all(reply.position <= LENGTH + 200 for reply in walk.replies)
    assert cuts <= 2 * SLOTS


def check_codes(family: Family, reply: ReplyState, position: int, codes: list[int], skips: bool) -> None:
    """Check that streams carry codes exactly at their delayed frames.

    Args:
        family: The model family.
        reply: State of the reply.
        position: Position of the row.
        codes: Codes of the row.
        skips: True if a limit ended the audio, so that the sampled row of a padded tail is left out.
    """
    layout, frame = family.layout, position - reply.audio_start
    for stream in range(1, layout.num_output_streams):
        first = layout.delays[stream] if family.warm_up is PADDED_WARM_UP else 0
        stop = first + reply.num_frames if family.tail is FORCED_TAIL else frame + 1
        if family.tail is PADDED_TAIL and 0 <= reply.audio_end < position - 1 + skips:
            stop = layout.delays[stream] + reply.num_frames + 1 - skips
        lies = reply.audio_start >= 0 and first <= frame < stop
        assert codes[stream - 1] == (layout.audio[stream].start + 3 if lies else layout.pad_id), (position, stream)
