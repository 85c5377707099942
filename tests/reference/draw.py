"""One draw as a plain loop in double precision."""

import math
from collections.abc import Callable, Sequence

Noise = Callable[[int], float]  # uniform noise of a token id


def draw(
    logits: Sequence[float], ids: Sequence[int], uniform: Noise, temperature: float, top_k: int, top_p: float
) -> tuple[int, float]:
    """The token id drawn, and how far the nearest decision on the way was from falling the other way."""
    ranked = sorted((c for c in range(len(ids)) if logits[c] > -math.inf), key=lambda c: -logits[c])
    if temperature == 0:
        return ids[ranked[0]], math.inf
    kept = ranked
    if 0 < top_k < len(ranked):
        kept = [c for c in ranked if logits[c] >= logits[ranked[top_k - 1]]]
    lead = math.inf
    if top_p < 1:
        weights = {c: math.exp((logits[c] - logits[kept[0]]) / temperature) for c in kept}
        total = math.fsum(weights.values())
        above, mass, previous = {}, 0.0, kept[0]
        for i, c in enumerate(kept):  # equal logits have the same mass above them
            above[c] = above[previous] if i and logits[c] == logits[previous] else mass / total
            mass, previous = mass + weights[c], c
        lead = min(abs(mass - top_p) for mass in above.values())
        kept = [c for c in kept if above[c] < top_p]
    scores = {c: logits[c] / temperature - math.log(-math.log(uniform(ids[c]))) for c in kept}
    best, *others = sorted(scores, key=lambda c: (-scores[c], c))
    lead = min([lead, *(scores[best] - scores[c] for c in others[:1])])
    return ids[best], lead
