"""One token per row and stream from masked logits: temperature, top-k, top-p and counter-based noise, without a sort.

For the CPU, in numpy over the tensors' own memory; `engine/kernels/gpu/draw.py` draws the same on a GPU.
"""

from dataclasses import dataclass, field

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
class _Rows:
    """What N rows ask for, [N, 1] each, and what no row asks for; greedy ones ask for top-k 1 at temperature 1.

    index [N]: which rows of a batch's, None for all. place [N, 1]: of a row's first column in the table of token ids.
    reach: how many of the largest logits are looked at first. is_open: where top-p is over all tokens, None if nowhere.
    """

    index: np.ndarray | None
    place: np.ndarray
    temperature: np.ndarray
    top_k: np.ndarray
    top_p: np.ndarray
    reach: np.ndarray
    is_open: np.ndarray | None
    is_greedy: np.ndarray | None
    keeps_all: bool
    has_top_p: bool

    @classmethod
    def of(cls, params: "DrawParams", num_streams: int, num_columns: int) -> "list[_Rows]":
        """The rows of S streams each; those that keep all tokens apart, lest the others be as wide as they."""

        def by_row(values: torch.Tensor) -> np.ndarray:
            return np.repeat(values.numpy(), num_streams)[:, None]

        temperature, top_k, top_p = by_row(params.temperature), by_row(params.top_k), by_row(params.top_p)
        is_random = temperature > 0
        top_k = np.where(is_random, np.where(top_k > 0, np.minimum(top_k, num_columns), num_columns), 1)
        top_p = np.where(is_random, top_p, np.float32(1))
        temperature = np.where(is_random, temperature, np.float32(1))
        place = np.tile(np.arange(num_streams) * num_columns, len(params.top_k))[:, None]
        is_open = top_k == num_columns
        reach = np.where(is_open, min(FIRST_REACH, num_columns), top_k)
        columns = place, temperature, top_k, top_p, reach, is_open, ~is_random
        keeps_all = (is_open & (top_p >= 1))[:, 0]
        parts = [part for part in (keeps_all, ~keeps_all) if part.any()]
        return [cls._part(None if len(parts) == 1 else np.flatnonzero(part), columns) for part in parts]

    @classmethod
    def _part(cls, index: np.ndarray | None, columns: tuple[np.ndarray, ...]) -> "_Rows":
        if index is not None:
            columns = tuple(column[index] for column in columns)
        place, temperature, top_k, top_p, reach, is_open, is_greedy = columns
        has_top_p = bool((top_p < 1).any())
        return cls(
            index, place, temperature, top_k, top_p, reach,
            is_open=is_open if is_open.any() else None,
            is_greedy=is_greedy if is_greedy.any() else None,
            keeps_all=bool(is_open.all()) and not has_top_p,
            has_top_p=has_top_p,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class DrawParams:
    """Sampling parameters of B rows: temperature float32 [B] (0 greedy), top_k int [B] (0 off), top_p float32 [B].

    They stay as they are for as long as the same rows draw: what is made of them for a shape of logits is kept.
    """

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    _rows: dict[tuple[int, int], list[_Rows]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def rows(self, num_streams: int, num_columns: int) -> list[_Rows]:
        """What the rows of S streams over C columns ask for."""
        shape = num_streams, num_columns
        if shape not in self._rows:
            self._rows[shape] = _Rows.of(self, *shape)
        return self._rows[shape]


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
    if not num_streams:
        return token_ids.new_zeros(num_rows, 0)
    values, ids = logits.numpy().reshape(-1, num_columns), token_ids.numpy()
    if plan.is_random:
        ids = _drawn(values, ids.reshape(-1), keys.numpy().reshape(-1, 1), params.rows(num_streams, num_columns))
    else:
        ids = ids[np.arange(num_streams), values.argmax(axis=1).reshape(num_rows, num_streams)]
    return torch.from_numpy(ids.reshape(num_rows, num_streams))


def _drawn(logits: np.ndarray, ids: np.ndarray, keys: np.ndarray, parts: list[_Rows]) -> np.ndarray:
    """The ids drawn from `logits` [N, C] with `keys` [N, 1]: of `ids`, those of all streams in one line."""
    if parts[0].index is None:
        return _draw_part(logits, ids, keys, parts[0])
    drawn = np.empty(len(logits), ids.dtype)
    for rows in parts:
        drawn[rows.index] = _draw_part(logits[rows.index], ids, keys[rows.index], rows)
    return drawn


def _draw_part(logits: np.ndarray, ids: np.ndarray, keys: np.ndarray, rows: _Rows) -> np.ndarray:
    values, columns, floor = (_all if rows.keeps_all else _kept)(logits, rows)
    places = rows.place + (np.arange(logits.shape[1]) if columns is None else columns)
    ids = ids[places]
    scores = values / rows.temperature
    noise = gumbel(keys, ids)
    scores += noise if rows.is_greedy is None else np.where(rows.is_greedy, 0, noise)
    np.putmask(scores, values < floor, -np.inf)
    return ids[np.arange(len(ids)), scores.argmax(axis=1)]


def _all(logits: np.ndarray, rows: _Rows) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Logits that may be drawn and their columns, as `candidates` has them, and the smallest that may be, [N, 1]."""
    floor = logits.max(axis=1, keepdims=True) - NOISE_SPAN * rows.temperature
    return *candidates(logits, floor), floor


def _kept(logits: np.ndarray, rows: _Rows) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """The same of rows of which some keep the `top_k` largest or a nucleus."""
    num_columns, reach = logits.shape[1], rows.reach
    total = None
    if rows.is_open is not None:  # a nucleus of all tokens: how far it reaches is not known
        largest = np.maximum(logits.max(axis=1, keepdims=True), LOWEST)
        weights = np.exp((logits - largest) / rows.temperature)
        total = np.where(rows.is_open, weights.sum(axis=1, keepdims=True), 0)
    while True:
        values, columns = candidates(logits, lower_bound(logits, reach))
        floor, falls_short = _floor(values, rows, total)
        if falls_short is None:
            return values, columns, floor
        falls_short &= reach < num_columns
        if not falls_short.any():
            return values, columns, floor
        reach = np.where(falls_short, np.minimum(8 * reach, num_columns), reach)


def _floor(values: np.ndarray, rows: _Rows, total: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    """The smallest logit that top-k and top-p keep, [N, 1], and whether `values` may not have reached down to it.

    total [N, 1]: the mass of rows without top-k, relative to the largest logit's; 0 or None for others.
    """
    ranked = np.sort(values, axis=1)[:, ::-1]
    last = np.minimum(rows.top_k, ranked.shape[1]) - 1
    lines = np.arange(len(ranked))[:, None]
    floor = ranked[lines, last]
    if not rows.has_top_p:
        return floor, None
    weights = np.exp((ranked - np.maximum(ranked[:, :1], LOWEST)) / rows.temperature)
    weights[ranked < floor] = 0
    mass = np.cumsum(weights, axis=1, dtype=np.float64)  # one after another: what follows changes nothing
    all_mass = mass[:, -1:] if total is None else np.where(total > 0, total, mass[:, -1:])
    wanted = rows.top_p * all_mass
    num_kept = 1 + (mass[:, :-1] < wanted).sum(axis=1, keepdims=True)
    falls_short = None if total is None else (total > 0) & (mass[:, -1:] < wanted)
    nucleus = ranked[lines, np.minimum(num_kept - 1, last)]
    return np.where(rows.top_p < 1, np.maximum(floor, nucleus), floor), falls_short
