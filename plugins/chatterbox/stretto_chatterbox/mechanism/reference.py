"""Slow reference of the sampling of Turbo's codes, for `stretto.testing`."""

import math
from collections.abc import Sequence
from itertools import accumulate

from stretto.records.sampling import CodeSampling
from stretto.testing import ReferenceRule


class LateScores(ReferenceRule):
    """Reference rules that apply the repetition penalty after top-k and top-p."""

    def penalized(self, logits: list[float], usual: list[float], stream: int) -> list[float]:
        """Return the logits unchanged, because `kept` applies the penalty."""
        return logits

    def kept(
        self, logits: Sequence[float], ranked: Sequence[int], limits: CodeSampling, penalized: Sequence[float]
    ) -> dict[int, float]:
        """Return the ids that top-k and top-p keep, with their penalized logits."""
        kept = list(ranked)
        if limits.temperature > 0:
            kept = kept[: limits.top_k or None]
            weights = [math.exp((logits[token] - logits[kept[0]]) / limits.temperature) for token in kept]
            before = accumulate(weights, initial=0.0)  # mass of all more probable ids
            wanted = limits.top_p * math.fsum(weights)
            kept = [token for token, mass in zip(kept, before, strict=False) if mass < wanted]
        return {token: penalized[token] for token in kept}
