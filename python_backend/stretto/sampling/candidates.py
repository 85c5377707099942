"""Selection of the few columns of each row that a draw needs, without sorting; numpy, for the CPU."""

import numpy as np

LOWEST = np.finfo(np.float32).min
GROUPS, GROUP_WIDTH = 64, 128  # least number of groups per row, and largest group width


def lower_bound(logits: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """Return a lower bound on the `reach`-th largest logit of each row, [N, 1], from the maxima of column groups."""
    num_rows, num_columns = logits.shape
    width = min(num_columns // max(GROUPS, 2 * int(reach.max())), GROUP_WIDTH)
    if width < 2:
        return np.full((num_rows, 1), LOWEST)
    groups = num_columns // width
    maxima = logits[:, : groups * width].reshape(num_rows, width, groups).max(axis=1)
    maxima.sort(axis=1)
    return maxima[np.arange(num_rows)[:, None], groups - reach]


def candidates(logits: np.ndarray, bound: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Return each row's finite logits from `bound` [N, 1] on, in column order, and their columns: [N, M] each.

    Shorter rows are filled with -inf. If there are many candidates, returns `logits` unchanged and None.
    """
    num_rows, num_columns = logits.shape
    found = (logits >= np.maximum(bound, LOWEST)).reshape(-1).nonzero()[0]
    if 4 * len(found) > logits.size:
        return logits, None
    ends = found.searchsorted(np.arange(num_rows + 1) * num_columns)
    counts = ends[1:] - ends[:-1]
    is_filled = np.arange(max(1, int(counts.max()))) < counts[:, None]
    values = np.full(is_filled.shape, -np.inf, np.float32)
    columns = np.zeros(is_filled.shape, np.int64)
    values[is_filled] = logits.reshape(-1)[found]
    columns[is_filled] = found % num_columns
    return values, columns
