"""Slow reference of the sampling of codes, for `stretto.testing`."""

import math
from collections.abc import Sequence
from itertools import accumulate

from stretto.records.sampling import CodeSampling
from stretto.testing import ReferenceRule


class LateTemperatureRule(ReferenceRule):
    """Reference rules that apply top-k and top-p at temperature 1."""

    again: Sequence[int] = ()  # ids from which stream 0 of the row is sampled again

    def kept(
        self, logits: Sequence[float], ranked: Sequence[int], limits: CodeSampling, penalized: Sequence[float]
    ) -> dict[int, float]:
        """Return the ids that top-k and top-p keep at temperature 1, with their logits."""
        weights = [math.exp(logits[token] - logits[ranked[0]]) for token in ranked]
        total = math.fsum(weights)
        top_k = limits.top_k or len(ranked)

        def within(top_p: float) -> list[int]:
            sums = [*accumulate(weights)]
            return [
                token
                for rank, token in enumerate(ranked[:top_k])
                if rank == 0 or top_p >= 1 or sums[rank] <= top_p * total
            ]

        self.again = within(self.rules.redraw_top_p)
        chosen = within(limits.top_p) if limits.temperature > 0 else ranked
        return {token: logits[token] for token in chosen}

    def is_guarded(self, token: int, stream: int, is_code: bool) -> bool:
        return stream == 0 and is_code

    def counted(self, ids: Sequence[int], window: int) -> Sequence[int]:
        """Return the last ids, without that of the first frame."""
        return ids[1:][-window:]

    def redrawn_from(self, allowed: Sequence[int], repeated: int) -> Sequence[int]:
        """Return the ids that `redraw_top_p` and the reply's top-k keep."""
        return self.again
