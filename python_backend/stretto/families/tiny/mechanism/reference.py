"""Slow reference of the alignment pointer, for `stretto.testing`."""

import math
from collections.abc import Sequence

from stretto.families.tiny.family import AlignmentPointer
from stretto.family.base import Family
from stretto.records.prompt import Prompt
from stretto.testing import ReferenceRule


class Pointer(ReferenceRule):
    """Entries of a reply's text, and the pointer that moves along them."""

    def __init__(self, script: AlignmentPointer, prompt: Prompt):
        super().__init__(script, prompt)
        self.script = script
        self.sampling = prompt.sampling
        self.text = list[int]()
        self.pointer = 0

    def text_is_full(self) -> bool:
        return len(self.text) >= self.script.max_entries

    def finish_text_row(self, row: list[int]) -> None:
        """Add the token of a text row, and write its number to the row."""
        if row[0] in self.script.spoken:
            self.text.append(row[0])
            row[self.script.index_stream] = self.script.index_base + len(self.text)

    def sampled(self, logits: Sequence[float], frame: int, noise: float, family: Family) -> tuple[int, float]:
        """Return stream 0 of an audio row, and the margin of the decision to stay or to advance."""
        advance = self.pointer == 0
        margin = math.inf
        if self.pointer:
            stay = self._frame_id(is_first=False)
            ids = [*family.layout.audio[0], family.end_of_audio]
            total = math.fsum(math.exp(logits[token] - logits[stay]) for token in ids)
            odds = total - 1.0  # of advancing against staying
            temperature = self.sampling.script_temperature
            threshold = temperature * math.log(noise / (1 - noise)) if temperature else 0.0
            margin = abs(math.log(odds) - threshold)
            advance = math.log(odds) > threshold
        if advance and self.pointer == len(self.text) and (frame >= self.sampling.audio.min_rows or not self.text):
            return family.end_of_audio, margin
        moves = advance and self.pointer < len(self.text)
        self.pointer += moves
        return self._frame_id(moves), margin

    def _frame_id(self, is_first: bool) -> int:
        script = self.script
        return script.first_frame + 2 * (self.text[self.pointer - 1] - script.spoken.start) + (not is_first)

    def replace_first(self, row: list[int], position: int, family: Family) -> None:
        """Write the pointer to an audio row."""
        if row[0] != family.end_of_audio:
            row[self.script.index_stream] = self.script.index_base + self.pointer
