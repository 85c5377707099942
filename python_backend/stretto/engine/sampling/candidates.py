"""The largest logits of each row: a lower bound on them, and the columns above it."""

import numpy as np

LOWEST = np.finfo(np.float32).min
# minimum number of groups per row, and maximum group width
GROUPS = 64
GROUP_WIDTH = 128


def group_width(num_columns: int, reach: int) -> int:
    """Return the width of the column groups that `lower_bound` compares; below 2, it uses no groups."""
    return min(num_columns // max(GROUPS, 2 * reach), GROUP_WIDTH)


def lower_bound(logits: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """Return a lower bound on the `reach`-th largest logit of each row, [N, 1], from the maxima of column groups.

    Args:
        logits: float32 [N, C].
        reach: Rank in each row, int [N, 1].
    """
    num_rows, num_columns = logits.shape
    width = group_width(num_columns, int(reach.max()))
    if width < 2:
        return np.full((num_rows, 1), LOWEST)
    groups = num_columns // width
    maxima = logits[:, : groups * width].reshape(num_rows, width, groups).max(axis=1)
    maxima.sort(axis=1)
    return maxima[np.arange(num_rows)[:, None], groups - reach]


def candidates(logits: np.ndarray, bound: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the finite logits of each row that are at least `bound` [N, 1], and their columns, both [N, M].

    Columns are in ascending order. M is the largest number of such logits in any row; other rows are padded with -inf.
    If more than a quarter of all logits qualify, `logits` itself is returned, with None for the columns.
    """
    num_rows, num_columns = logits.shape
    if num_rows == 1:  # the same in fewer calls, which take a fifth of the time of one stream's draw
        kept = (logits[0] >= np.maximum(bound[0], LOWEST)).nonzero()[0]
        if len(kept) and 4 * len(kept) <= num_columns:
            return logits[:, kept], kept[None]
    kept = (logits >= np.maximum(bound, LOWEST)).reshape(-1).nonzero()[0]
    if 4 * len(kept) > logits.size:
        return logits, None
    ends = kept.searchsorted(np.arange(num_rows + 1) * num_columns)
    counts = ends[1:] - ends[:-1]
    is_filled = np.arange(max(1, int(counts.max()))) < counts[:, None]
    values = np.full(is_filled.shape, -np.inf, np.float32)
    columns = np.zeros(is_filled.shape, np.int64)
    values[is_filled] = logits.reshape(-1)[kept]
    columns[is_filled] = kept % num_columns
    return values, columns
