"""Slow reference for a draw: a plain loop in double precision."""

import math
from collections.abc import Callable, Sequence

Noise = Callable[[int], float]  # uniform noise of a token id


MARGIN = 1e-5  # of probability: tolerance for sums in another order


def draw(
    logits: Sequence[float],
    ids: Sequence[int],
    uniform: Noise,
    temperature: float,
    top_k: int,
    top_p: float,
    of_all: bool = False,
) -> tuple[int, float]:
    """Return the sampled token id and its margin, which is 0 if a slightly different `top_p` would change the id.

    Top-p applies to the probabilities of the ids that top-k keeps, or to those of all ids if `of_all` is True.
    """
    ranked = sorted((c for c in range(len(ids)) if logits[c] > -math.inf), key=lambda c: -logits[c])
    if temperature == 0:
        return ids[ranked[0]], math.inf
    kept = ranked
    if 0 < top_k < len(ranked):
        kept = [c for c in ranked if logits[c] >= logits[ranked[top_k - 1]]]
    above = mass_above(ranked if of_all else kept, logits, temperature)
    noise = {c: -math.log(-math.log(uniform(ids[c]))) for c in kept}

    def best_two(mass: float) -> list[tuple[float, int]]:
        nucleus = kept if top_p == 1 else [c for c in kept if above[c] < mass]
        return sorted((-logits[c] / temperature - noise[c], c) for c in nucleus)[:2]

    best, *others = best_two(top_p)
    is_certain = all(best_two(mass)[:1] == [best] for mass in (top_p - MARGIN, top_p + MARGIN) if mass > 0)
    lead = others[0][0] - best[0] if others else math.inf
    return ids[best[1]], lead if is_certain else 0.0


def mass_above(kept: list[int], logits: Sequence[float], temperature: float) -> dict[int, float]:
    """For each of the columns `kept`, most probable first, return the probability of all more probable columns."""
    weights = [math.exp((logits[c] - logits[kept[0]]) / temperature) for c in kept]
    total, mass = math.fsum(weights), 0.0
    above: dict[int, float] = {}
    for i, c in enumerate(kept):
        above[c] = above[kept[i - 1]] if i and logits[c] == logits[kept[i - 1]] else mass / total
        mass += weights[i]
    return above
