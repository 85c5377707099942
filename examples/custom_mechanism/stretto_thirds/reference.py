"""The rule, row by row, for the slow reference of `stretto.testing`."""

from stretto.family.base import Family
from stretto.records.prompt import Prompt
from stretto.testing import ReferenceRule
from stretto_thirds.family import EveryThird


class Repeated(ReferenceRule):
    """Rule of the family in one reply, with the codes of its first codebook."""

    def __init__(self, rules: EveryThird, prompt: Prompt):
        super().__init__(rules, prompt)
        self.codes = list[int]()

    def replace_first(self, row: list[int], position: int, family: Family) -> None:
        """Replace the code of every third frame in a sampled row."""
        if row[0] in family.layout.audio[0] and len(self.codes) % 3 == 2:
            row[0] = self.codes[-1]
        self.codes.append(row[0])
