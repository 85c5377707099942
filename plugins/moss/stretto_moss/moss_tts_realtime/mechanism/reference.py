"""Slow reference of the penalty on recent ids, for `stretto.testing`."""

from typing import Any

from stretto.family.base import Family
from stretto.records.prompt import Prompt
from stretto.testing import ReferenceRule


class RecentIds(ReferenceRule):
    """Rules of the penalty on recent ids in one reply."""

    def __init__(self, rules: Any, prompt: Prompt):
        super().__init__(rules, prompt)
        self._rows: list[list[int]] = []

    def penalized(self, logits: list[float], usual: list[float], stream: int) -> list[float]:
        """Return the logits of a stream with the penalty (`ReferenceRule.penalized`)."""
        counted = {row[stream] for row in self._rows[-self.rules.num_recent_rows :]}
        penalty = self.prompt.sampling.repetition_penalty
        factors = [penalty if logit < 0 else 1 / penalty for logit in logits]
        factors = [factor if token in counted else 1.0 for token, factor in enumerate(factors)]
        return [logit * factor for logit, factor in zip(logits, factors, strict=True)]

    def replace_streams(self, row: list[int], position: int, family: Family) -> None:
        self._rows.append(list(row))
