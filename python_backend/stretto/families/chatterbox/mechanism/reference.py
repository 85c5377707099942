"""Slow reference of how Turbo's codes are sampled, for `stretto.testing`."""

import math
from collections.abc import Sequence
from itertools import accumulate

from stretto.families.base import Family
from stretto.families.mechanism import Mechanism
from stretto.records.prompt import Prompt
from stretto.records.sampling import CodeSampling


class LateScores:
    """Rule by which the codes of a reply are sampled."""

    def __init__(self, mechanism: Mechanism, prompt: Prompt):
        pass

    def lay(self, row: list[int], position: int, family: Family) -> None:
        """Leave the sampled row unchanged."""

    def kept(
        self, logits: Sequence[float], ranked: Sequence[int], limits: CodeSampling, penalized: Sequence[float]
    ) -> dict[int, float]:
        """Return the ids that may be sampled, with their penalized logits.

        Args:
            logits: Logits over the vocabulary.
            ranked: Permitted ids, the most probable one first.
            limits: Sampling options.
            penalized: Logits with the repetition penalty.
        """
        kept = list(ranked)
        if limits.temperature > 0:
            kept = kept[: limits.top_k or None]
            weights = [math.exp((logits[token] - logits[kept[0]]) / limits.temperature) for token in kept]
            before = accumulate(weights, initial=0.0)  # mass of all more probable ids
            wanted = limits.top_p * math.fsum(weights)
            kept = [token for token, mass in zip(kept, before, strict=False) if mass < wanted]
        return {token: penalized[token] for token in kept}
