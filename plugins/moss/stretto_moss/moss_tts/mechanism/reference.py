"""Slow reference of the delay slots, for `stretto.testing`."""

from stretto.family.base import Family
from stretto.records.prompt import Prompt
from stretto.testing import ReferenceRule
from stretto_moss.moss_tts.family import DelaySlots


class SlotReference(ReferenceRule):
    """Rules of the delay slots in one reply, which count the delay ids of the text stream."""

    def __init__(self, slots: DelaySlots, prompt: Prompt):
        super().__init__(slots, prompt)
        self.slots = slots
        self.first = len(prompt.rows)
        self.shortest = prompt.sampling.audio.min_rows
        self.delays = 0  # number of delay ids so far

    def replace_streams(self, row: list[int], position: int, family: Family) -> None:
        """Replace the text id and the pads in a sampled row."""
        slots = self.slots
        frame = position - self.first
        if self.delays == len(slots.pads):
            row[0] = slots.end
        elif self.delays:
            row[0] = slots.delay
        elif frame < self.shortest:
            row[0] = slots.slot
        for codebook, pad in enumerate(slots.pads):
            if frame < codebook or codebook < self.delays:
                row[1 + codebook] = pad
        self.delays += row[0] == slots.delay
