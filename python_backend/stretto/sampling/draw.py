"""One token per row and stream from masked logits: temperature, top-k, top-p and counter-based noise, without a sort.

For the CPU, in numpy over the tensors' own memory; `engine/kernels/gpu/draw.py` draws the same on a GPU.
"""

from dataclasses import dataclass

import numpy as np
import torch

from stretto.sampling.candidates import LOWEST, candidates, lower_bound
from stretto.sampling.noise import gumbel

# Noise of 23 bits lies in (-2.82, 16.64): further than this below the largest logit, at temperature 1, nobody wins.
NOISE_SPAN = 20.0
FIRST_REACH = 128  # how many of the largest logits are looked at first for a nucleus without top-k


@dataclass(frozen=True, slots=True)
class DrawPlan:
    """What the host knows of a batch of draws, so that work that no row asks for is left out.

    num_candidates: how many of the largest logits any row may keep; 0 where some row keeps all of them.
    """

    is_random: bool
    num_candidates: int
    has_top_p: bool

    @classmethod
    def of(cls, temperature: np.ndarray, top_k: np.ndarray, top_p: np.ndarray) -> "DrawPlan":
        """The plan for rows with these parameters, [B] each; greedy rows need one candidate."""
        random = temperature > 0
        if not random.any():
            return cls(False, 1, False)
        top_k, top_p = top_k[random], top_p[random]
        return cls(True, int(top_k.max()) if top_k.all() else 0, bool((top_p < 1).any()))


@dataclass(frozen=True, slots=True)
class DrawParams:
    """Sampling parameters of B rows: temperature float32 [B] (0 greedy), top_k int [B] (0 off), top_p float32 [B]."""

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor


@dataclass(frozen=True, slots=True)
class _Rows:
    """N rows with their logits [N, C] and, [N, 1] each, parameters and stream; greedy ones as top-k 1 at T = 1."""

    logits: np.ndarray
    keys: np.ndarray
    stream: np.ndarray
    is_random: np.ndarray
    temperature: np.ndarray
    top_k: np.ndarray
    top_p: np.ndarray

    def __getitem__(self, index: np.ndarray) -> "_Rows":
        return _Rows(*(getattr(self, name)[index] for name in self.__slots__))


def draw(
    logits: torch.Tensor, token_ids: torch.Tensor, keys: torch.Tensor, params: DrawParams, plan: DrawPlan
) -> torch.Tensor:
    """The token id drawn for each row and stream: exactly this, whatever else is in the batch.

    Of a row's logits those are kept that are at least its `top_k`-th largest (ties are kept, so there may be more);
    of these, with probabilities `softmax(logits / temperature)` over what top-k kept, each token above which lies
    less mass than `top_p` (equal logits are kept or left together). The largest of `logit / temperature + gumbel` is
    drawn, on ties the lowest column. At temperature 0 it is the largest logit, on ties the lowest column.

    logits [B, S, C] float32 on the CPU, -inf where a token may not come; token_ids [S, C]: what the columns stand
    for; keys [B, S] from `stream_keys`. Returns [B, S] of `token_ids`' type.
    """
    num_rows, num_streams, num_columns = logits.shape
    flat = logits.numpy().reshape(-1, num_columns)
    rows = _rows(flat, keys, params, num_streams) if plan.is_random else None
    columns = flat.argmax(axis=1) if rows is None else _columns(rows, token_ids.numpy())
    return token_ids[torch.arange(num_streams), torch.from_numpy(columns).view(num_rows, num_streams)]


def _rows(logits: np.ndarray, keys: torch.Tensor, params: DrawParams, num_streams: int) -> _Rows:
    def by_row(values: torch.Tensor) -> np.ndarray:
        return np.repeat(values.numpy(), num_streams)[:, None]

    temperature, top_k, top_p = by_row(params.temperature), by_row(params.top_k), by_row(params.top_p)
    is_random, num_columns = temperature > 0, logits.shape[1]
    top_k = np.where(top_k > 0, np.minimum(top_k, num_columns), num_columns)
    return _Rows(
        logits=logits,
        keys=keys.numpy().reshape(-1, 1),
        stream=np.tile(np.arange(num_streams), len(params.top_k))[:, None],
        is_random=is_random,
        temperature=np.where(is_random, temperature, np.float32(1)),
        top_k=np.where(is_random, top_k, 1),
        top_p=np.where(is_random, top_p, np.float32(1)),
    )


def _columns(rows: _Rows, token_ids: np.ndarray) -> np.ndarray:
    """The column drawn in each row, [N]; rows that keep all tokens go apart, lest the others be as wide as they."""
    keeps_all = (rows.top_k == rows.logits.shape[1]) & (rows.top_p >= 1)
    if not keeps_all.any():
        return _from_kept(rows, token_ids)
    if keeps_all.all():
        return _from_all(rows, token_ids)
    columns = np.empty(len(keeps_all), np.int64)
    for part, from_part in ((keeps_all, _from_all), (~keeps_all, _from_kept)):
        index = np.flatnonzero(part)
        columns[index] = from_part(rows[index], token_ids)
    return columns


def _from_all(rows: _Rows, token_ids: np.ndarray) -> np.ndarray:
    bound = rows.logits.max(axis=1, keepdims=True) - NOISE_SPAN * rows.temperature
    values, columns = candidates(rows.logits, bound)
    return _noisiest(rows, values, columns, bound, token_ids)


def _from_kept(rows: _Rows, token_ids: np.ndarray) -> np.ndarray:
    num_columns = rows.logits.shape[1]
    total = None
    if (is_open := rows.top_k == num_columns).any():  # a nucleus of all tokens: how far it reaches is not known
        largest = np.maximum(rows.logits.max(axis=1, keepdims=True), LOWEST)
        weights = np.exp((rows.logits - largest) / rows.temperature)
        total = np.where(is_open, weights.sum(axis=1, keepdims=True), 0)
    reach = np.where(is_open, min(FIRST_REACH, num_columns), rows.top_k)
    while True:
        values, columns = candidates(rows.logits, lower_bound(rows.logits, reach))
        floor, falls_short = _floor(values, rows, total)
        falls_short &= reach < num_columns
        if not falls_short.any():
            return _noisiest(rows, values, columns, floor, token_ids)
        reach = np.where(falls_short, np.minimum(8 * reach, num_columns), reach)


def _floor(values: np.ndarray, rows: _Rows, total: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The smallest logit that top-k and top-p keep, [N, 1], and whether `values` may not have reached down to it.

    total [N, 1]: the mass of rows without top-k, relative to the largest logit's; 0 or None for others.
    """
    ranked = np.sort(values, axis=1)[:, ::-1]
    last = np.minimum(rows.top_k, ranked.shape[1]) - 1
    floor = np.take_along_axis(ranked, last, axis=1)
    if (rows.top_p >= 1).all():
        return floor, np.zeros(floor.shape, np.bool_)
    weights = np.exp((ranked - np.maximum(ranked[:, :1], LOWEST)) / rows.temperature)
    weights[ranked < floor] = 0
    mass = np.cumsum(weights, axis=1, dtype=np.float64)  # one after another: what follows changes nothing
    all_mass = mass[:, -1:] if total is None else np.where(total > 0, total, mass[:, -1:])
    wanted = rows.top_p * all_mass
    num_kept = 1 + (mass[:, :-1] < wanted).sum(axis=1, keepdims=True)
    falls_short = np.zeros(floor.shape, np.bool_) if total is None else (total > 0) & (mass[:, -1:] < wanted)
    nucleus = np.take_along_axis(ranked, np.minimum(num_kept - 1, last), axis=1)
    return np.where(rows.top_p < 1, np.maximum(floor, nucleus), floor), falls_short


def _noisiest(
    rows: _Rows, values: np.ndarray, columns: np.ndarray | None, floor: np.ndarray, token_ids: np.ndarray
) -> np.ndarray:
    """The column [N] of each row's largest noisy value among those from `floor` [N, 1] on."""
    ids = token_ids[rows.stream[:, 0]] if columns is None else token_ids[rows.stream, columns]
    noise = gumbel(torch.from_numpy(rows.keys), torch.from_numpy(ids)).numpy()
    scores = values / rows.temperature
    scores += noise if rows.is_random.all() else np.where(rows.is_random, noise, 0)
    np.putmask(scores, values < floor, -np.inf)
    best = scores.argmax(axis=1)
    return best if columns is None else columns[np.arange(len(best)), best]
