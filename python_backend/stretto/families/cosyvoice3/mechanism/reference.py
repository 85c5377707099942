"""Slow reference of how codes are sampled, for `stretto.testing`."""

import math
from collections.abc import Sequence
from itertools import accumulate

from stretto.families.base import Family
from stretto.families.mechanism import Mechanism
from stretto.records.prompt import Prompt
from stretto.records.sampling import CodeSampling


class Codes:
    """Rule by which the codes of a reply are sampled."""

    def __init__(self, mechanism: Mechanism, prompt: Prompt):
        pass

    def lay(self, row: list[int], position: int, family: Family) -> None:
        """Leave the sampled row unchanged."""

    def kept(
        self, logits: Sequence[float], ranked: Sequence[int], limits: CodeSampling, penalized: Sequence[float]
    ) -> dict[int, float]:
        """Return the ids that may be sampled, with their logits; at temperature 0 all, so that near ties are seen.

        Args:
            logits: Logits over the vocabulary.
            ranked: Permitted ids, the most probable one first.
            limits: Sampling options.
            penalized: Logits with the repetition penalty.
        """
        kept = list(ranked)
        if limits.temperature > 0:
            weights = [math.exp((logits[token] - logits[ranked[0]]) / limits.temperature) for token in ranked]
            before = accumulate(weights, initial=0.0)  # mass of all more probable ids
            wanted = limits.top_p * math.fsum(weights)
            kept = [token for token, mass in zip(ranked, before, strict=False) if mass < wanted][: limits.top_k or None]
        return {token: logits[token] for token in kept}

    def redrawn(self, allowed: Sequence[int], repeated: int) -> list[int]:
        """Return the ids from which one is sampled again instead of a repeated one."""
        return [token for token in allowed if token != repeated]
