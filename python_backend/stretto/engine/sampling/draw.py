"""Draw of one token id per row and stream, with temperature, top-k, top-p and noise."""

import numpy as np
import torch

from stretto.engine.sampling.candidates import LOWEST, candidates
from stretto.engine.sampling.noise import gumbel
from stretto.engine.sampling.parameters import DrawParams, DrawPlan, PairRows
from stretto.engine.sampling.truncation import kept_candidates

# 23-bit Gumbel noise is in (-2.82, 16.64). At temperature 1, a logit is never sampled if it is below the largest logit
# by more than the difference of these bounds.
NOISE_SPAN = 20.0


def draw(
    logits: torch.Tensor, token_ids: torch.Tensor, keys: torch.Tensor, params: DrawParams, plan: DrawPlan
) -> torch.Tensor:
    """Sample a token id for each row and stream, [B, S], independently of the rest of the batch.

    Top-k keeps the logits that are at least the `top_k`-th largest, including ties. Top-p applies to probabilities
    `softmax(logits / temperature)` over these logits, or over all logits if `params.of_all` is True. It keeps a token
    if the total probability of all more likely tokens is below `top_p`; tokens with equal logits are kept or dropped
    together. Of the kept tokens, the one with the largest `logit / temperature + gumbel` is chosen; at temperature 0,
    the one with the largest logit. Ties go to the lowest column.

    Args:
        logits: float32 [B, S, C] on the CPU, -inf for forbidden tokens.
        token_ids: Token id of each column, [S, C].
        keys: Noise keys from `stream_keys`, int32 [B, S].
    """
    num_rows, num_streams, num_columns = logits.shape
    if not num_streams:
        return token_ids.new_zeros(num_rows, 0)
    values = logits.numpy().reshape(-1, num_columns)
    ids = token_ids.numpy()
    if plan.is_random:
        ids = _drawn(values, ids.reshape(-1), keys.numpy().reshape(-1, 1), params.rows(num_streams, num_columns))
    else:
        ids = ids[np.arange(num_streams), values.argmax(axis=1).reshape(num_rows, num_streams)]
    return torch.from_numpy(ids.reshape(num_rows, num_streams))


def _drawn(logits: np.ndarray, ids: np.ndarray, keys: np.ndarray, parts: list[PairRows]) -> np.ndarray:
    """Sample from `logits` [N, C] with noise `keys` [N, 1]; `ids` [S * C] has the token ids of all streams in turn."""
    if parts[0].index is None:
        return _draw_part(logits, ids, keys, parts[0])
    drawn = np.empty(len(logits), ids.dtype)
    for rows in parts:
        drawn[rows.index] = _draw_part(logits[rows.index], ids, keys[rows.index], rows)
    return drawn


def _draw_part(logits: np.ndarray, ids: np.ndarray, keys: np.ndarray, rows: PairRows) -> np.ndarray:
    if rows.grouping is not None:
        drawn = _draw_single(logits[0], ids, keys[0], rows, *rows.grouping)
        if drawn is not None:
            return drawn
    values, columns, floor = (_all if rows.keeps_all else kept_candidates)(logits, rows)
    positions = rows.first_column + (np.arange(logits.shape[1]) if columns is None else columns)
    ids = ids[positions]
    scores = values / rows.temperature
    noise = gumbel(keys, ids)
    scores += noise if rows.is_greedy is None else np.where(rows.is_greedy, 0, noise)
    np.putmask(scores, values < floor, -np.inf)
    return ids[np.arange(len(ids)), scores.argmax(axis=1)]


def _draw_single(
    logits: np.ndarray, ids: np.ndarray, key: np.ndarray, rows: PairRows, width: int, groups: int
) -> np.ndarray | None:
    """Return the id [1] of `_drawn` for one row and stream with top-k, or None if no logit is finite."""
    top_k = rows.top_k.item()
    maxima = logits[: width * groups].reshape(width, groups).max(axis=0)
    maxima.sort()
    (columns,) = (logits >= max(maxima[groups - top_k], LOWEST)).nonzero()
    values = logits[columns]
    column_ids = ids[columns]
    if not len(values):
        return None
    scores = values / rows.temperature[0]
    scores += gumbel(key, column_ids)
    if len(values) > top_k:
        scores[values < np.partition(values, -top_k)[-top_k]] = -np.inf
    return column_ids[scores.argmax()][None]


def _all(logits: np.ndarray, rows: PairRows) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Return `candidates` of rows that keep all tokens, and the smallest logit that can be drawn, [N, 1]."""
    floor = logits.max(axis=1, keepdims=True) - NOISE_SPAN * rows.temperature
    return *candidates(logits, floor), floor
