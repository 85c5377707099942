"""Top-k and top-p: selection of the logits of a row that may be sampled."""

import numpy as np

from stretto.engine.sampling.candidates import LOWEST, candidates, lower_bound
from stretto.engine.sampling.parameters import PairRows


def kept_candidates(logits: np.ndarray, rows: PairRows) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Return the logits among which rows with top-k or top-p sample.

    Returns:
        Largest logits of each row, float [N, M]; their columns, int [N, M], or None if they are all; and the smallest
        logit that each row keeps, float [N, 1].
    """
    num_columns = logits.shape[1]
    reach = rows.reach
    total = None
    of_all = rows.of_all and rows.has_top_p
    if rows.is_open is not None or of_all:  # top-p without top-k may keep any number of tokens
        largest = np.maximum(logits.max(axis=1, keepdims=True), LOWEST)
        weights = np.exp((logits - largest) / rows.temperature)
        total = np.where(of_all | (rows.is_open is not None and rows.is_open), weights.sum(axis=1, keepdims=True), 0)
    while True:
        values, columns = candidates(logits, lower_bound(logits, reach))
        floor, falls_short = _floor(values, rows, total)
        if falls_short is None:
            return values, columns, floor
        falls_short &= reach < num_columns
        if not falls_short.any():
            return values, columns, floor
        reach = np.where(falls_short, np.minimum(8 * reach, num_columns), reach)


def _floor(values: np.ndarray, rows: PairRows, total: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the smallest logit that top-k and top-p keep, and the rows for which `values` has too few logits.

    Args:
        values: Largest logits of each row, [N, M].
        total: Sum of `exp((logit - largest) / temperature)` over all logits for rows where top-p applies to all, 0 for
            others, [N, 1]; None if there is no such row.

    Returns:
        Smallest kept logit, float [N, 1], and True for rows that may keep logits not in `values`, bool [N, 1]; None
        instead of the latter if there cannot be such a row.
    """
    ranked = np.sort(values, axis=1)[:, ::-1]
    last = np.minimum(rows.top_k, ranked.shape[1]) - 1
    lines = np.arange(len(ranked))[:, None]
    floor = ranked[lines, last]
    if not rows.has_top_p:
        return floor, None
    weights = np.exp((ranked - np.maximum(ranked[:, :1], LOWEST)) / rows.temperature)
    weights[ranked < floor] = 0
    mass = np.cumsum(weights, axis=1, dtype=np.float64)  # sequential, so that later values do not change earlier sums
    all_mass = mass[:, -1:] if total is None else np.where(total > 0, total, mass[:, -1:])
    wanted = rows.top_p * all_mass
    num_kept = 1 + (mass[:, :-1] < wanted).sum(axis=1, keepdims=True)
    falls_short = None if rows.is_open is None else rows.is_open & (mass[:, -1:] < wanted)
    nucleus = ranked[lines, np.minimum(num_kept - 1, last)]
    return np.where(rows.top_p < 1, np.maximum(floor, nucleus), floor), falls_short
