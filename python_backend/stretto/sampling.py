"""Sampling of one token id per row and stream: logits processors, guidance, temperature, top-k, top-p and noise."""

import math
from dataclasses import dataclass, field

import numpy as np
import torch

from stretto.noise import gumbel

LOWEST = np.finfo(np.float32).min
# minimum number of groups per row, and maximum group width
GROUPS = 64
GROUP_WIDTH = 128


def _group_width(num_columns: int, reach: int) -> int:
    """Return the number of columns of a group whose maximum counts towards `lower_bound`; below 2: no groups."""
    return min(num_columns // max(GROUPS, 2 * reach), GROUP_WIDTH)


def lower_bound(logits: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """Return a lower bound on the `reach`-th largest logit of each row, from the maxima of column groups.

    Args:
        logits: float32 [N, C].
        reach: Ranks, int [N, 1].

    Returns:
        float32 [N, 1].
    """
    num_rows, num_columns = logits.shape
    width = _group_width(num_columns, int(reach.max()))
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
        found = (logits[0] >= np.maximum(bound[0], LOWEST)).nonzero()[0]
        if len(found) and 4 * len(found) <= num_columns:
            return logits[:, found], found[None]
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


def guide(conditional: torch.Tensor, unconditional: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return `unconditional + scale * (conditional - unconditional)`, computed in float32.

    Args:
        conditional: Logits of the conditional requests, [B, ..., C].
        unconditional: Logits of the unconditional requests, [B, ..., C].
        scale: Guidance scales, [B].
    """
    conditional = conditional.float()
    unconditional = unconditional.float()
    scale = scale.view(-1, *[1] * (conditional.dim() - 1))
    return unconditional + scale * (conditional - unconditional)


# 23-bit Gumbel noise is in (-2.82, 16.64). At temperature 1, a logit is never sampled if it is below the largest logit
# by more than the difference of these bounds.
NOISE_SPAN = 20.0
FIRST_REACH = 128  # number of largest logits to examine first for top-p without top-k


@dataclass(frozen=True, slots=True)
class DrawPlan:
    """Batch properties known on the host, used to skip operations that no row needs.

    Attributes:
        is_random: True if any row has a temperature above 0.
        has_top_p: True if any row uses top-p.
    """

    is_random: bool
    has_top_p: bool

    @classmethod
    def from_parameters(cls, temperature: np.ndarray, top_p: np.ndarray) -> "DrawPlan":
        """Return the plan for a batch of B rows.

        Args:
            temperature: Temperatures, float [B]; 0 is greedy.
            top_p: Probability mass to keep, float [B]; 1 is off.
        """
        random = temperature > 0
        return cls(bool(random.any()), bool((top_p[random] < 1).any()))


@dataclass(frozen=True, slots=True)
class _Rows:
    """Sampling parameters of N (row, stream) pairs, [N, 1] each; a greedy pair has top-k 1 and temperature 1.

    Attributes:
        index: Position of each pair in the batch, [N]; None for all pairs in order.
        place: First column of the pair's stream in the flattened table of token ids, [N, 1].
        reach: Number of largest logits to examine first.
        is_open: True for pairs without top-k; None if all pairs have it.
        is_greedy: True for pairs at temperature 0; None if there are none.
        keeps_all: True if no pair uses top-k or top-p.
        has_top_p: True if any pair uses top-p.
        of_all: See `DrawParams`.
        grouping: Width and number of column groups (`_group_width`) for a single pair with top-k, but without top-p;
            None for other pairs.
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
    of_all: bool
    grouping: tuple[int, int] | None

    @classmethod
    def from_parameters(cls, params: "DrawParams", num_streams: int, num_columns: int) -> "list[_Rows]":
        """Return the parameters of all (row, stream) pairs, in at most two groups.

        Pairs that keep all tokens form their own group, because the number of candidates is padded to the maximum of a
        group.
        """

        def by_row(values: torch.Tensor) -> np.ndarray:
            return np.repeat(values.numpy(), num_streams)[:, None]

        temperature = by_row(params.temperature)
        top_k = by_row(params.top_k)
        top_p = by_row(params.top_p)
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
        indices = [None if len(parts) == 1 else np.flatnonzero(part) for part in parts]
        return [cls._part(index, columns, params.of_all, num_columns) for index in indices]

    @classmethod
    def _part(
        cls, index: np.ndarray | None, columns: tuple[np.ndarray, ...], of_all: bool, num_columns: int
    ) -> "_Rows":
        if index is not None:
            columns = tuple(column[index] for column in columns)
        place, temperature, top_k, top_p, reach, is_open, is_greedy = columns
        has_top_p = bool((top_p < 1).any())
        width = _group_width(num_columns, int(reach.max()))
        is_single = len(place) == 1 and not (has_top_p or is_open[0, 0] or is_greedy[0, 0])
        return cls(
            index, place, temperature, top_k, top_p, reach,
            is_open=is_open if is_open.any() else None,
            is_greedy=is_greedy if is_greedy.any() else None,
            keeps_all=bool(is_open.all()) and not has_top_p,
            has_top_p=has_top_p,
            of_all=of_all,
            grouping=(width, num_columns // width) if is_single and width > 1 else None,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class DrawParams:
    """Sampling parameters of B rows: temperature float32 [B] (0 greedy), top_k int [B] (0 off), top_p float32 [B].

    If `of_all` is True, top-p applies to the probabilities of all tokens, otherwise to those of the tokens that top-k
    keeps. The object is reused while the batch has the same rows, so derived arrays are cached for each shape of the
    logits.
    """

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    of_all: bool = field(default=False, kw_only=True)
    _rows: dict[tuple[int, int], list[_Rows]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def rows(self, num_streams: int, num_columns: int) -> list[_Rows]:
        """Return the parameters for logits of S streams and C columns."""
        shape = num_streams, num_columns
        if shape not in self._rows:
            self._rows[shape] = _Rows.from_parameters(self, *shape)
        return self._rows[shape]


def draw(
    logits: torch.Tensor, token_ids: torch.Tensor, keys: torch.Tensor, params: DrawParams, plan: DrawPlan
) -> torch.Tensor:
    """Sample a token id for each row and stream, independently of the rest of the batch.

    Top-k keeps the logits that are at least the `top_k`-th largest, including ties. Top-p applies to probabilities
    `softmax(logits / temperature)` over these logits, or over all logits if `params.of_all` is True. It keeps a token
    if the total probability of all more likely tokens is below `top_p`; tokens with equal logits are kept or dropped
    together. Of the kept tokens, the one with the largest `logit / temperature + gumbel` is chosen; at temperature 0,
    the one with the largest logit. Ties go to the lowest column.

    Args:
        logits: float32 [B, S, C] on the CPU, -inf for forbidden tokens.
        token_ids: Token id of each column, [S, C].
        keys: Noise keys from `stream_keys`, int32 [B, S].
        params: Sampling parameters of the rows.
        plan: Properties of the batch (see `DrawPlan`).

    Returns:
        Sampled ids, [B, S], with the dtype of `token_ids`.
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


def _drawn(logits: np.ndarray, ids: np.ndarray, keys: np.ndarray, parts: list[_Rows]) -> np.ndarray:
    """Return the ids sampled from `logits` [N, C] with noise `keys` [N, 1].

    `ids` [S * C] contains the token ids of all streams, one stream after the other.
    """
    if parts[0].index is None:
        return _draw_part(logits, ids, keys, parts[0])
    drawn = np.empty(len(logits), ids.dtype)
    for rows in parts:
        drawn[rows.index] = _draw_part(logits[rows.index], ids, keys[rows.index], rows)
    return drawn


def _draw_part(logits: np.ndarray, ids: np.ndarray, keys: np.ndarray, rows: _Rows) -> np.ndarray:
    if rows.grouping is not None:
        drawn = _draw_single(logits[0], ids, keys[0], rows, *rows.grouping)
        if drawn is not None:
            return drawn
    values, columns, floor = (_all if rows.keeps_all else _kept)(logits, rows)
    places = rows.place + (np.arange(logits.shape[1]) if columns is None else columns)
    ids = ids[places]
    scores = values / rows.temperature
    noise = gumbel(keys, ids)
    scores += noise if rows.is_greedy is None else np.where(rows.is_greedy, 0, noise)
    np.putmask(scores, values < floor, -np.inf)
    return ids[np.arange(len(ids)), scores.argmax(axis=1)]


def _draw_single(
    logits: np.ndarray, ids: np.ndarray, key: np.ndarray, rows: _Rows, width: int, groups: int
) -> np.ndarray | None:
    """Do the same for a single pair with top-k, in half as many operations; the result is the same id.

    Args:
        logits: Logits, [C].
        ids: Token ids, [C].
        key: Noise key, [1].
        rows: Sampling parameters of the pair.
        width: Number of columns of a group.
        groups: Number of groups.

    Returns:
        The id [1], or None if no logit is finite.
    """
    top_k = rows.top_k.item()
    maxima = logits[: width * groups].reshape(width, groups).max(axis=0)
    maxima.sort()
    (columns,) = (logits >= max(maxima[groups - top_k], LOWEST)).nonzero()
    values = logits[columns]
    places = ids[columns]
    if not len(values):
        return None
    scores = values / rows.temperature[0]
    scores += gumbel(key, places)
    if len(values) > top_k:
        scores[values < np.partition(values, -top_k)[-top_k]] = -np.inf
    return places[scores.argmax()][None]


def _all(logits: np.ndarray, rows: _Rows) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Return the candidates of rows that keep all tokens.

    Returns:
        Logits and columns, as `candidates` returns them, and the smallest logit that can be drawn, [N, 1].
    """
    floor = logits.max(axis=1, keepdims=True) - NOISE_SPAN * rows.temperature
    return *candidates(logits, floor), floor


def _kept(logits: np.ndarray, rows: _Rows) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Return the candidates of rows with top-k or top-p, in the form that `_all` returns."""
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


def _floor(values: np.ndarray, rows: _Rows, total: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the smallest logit that top-k and top-p keep, and the rows for which `values` has too few logits.

    Args:
        values: Largest logits of each row, [N, M].
        rows: Sampling parameters.
        total: Sum of `exp((logit - largest) / temperature)` over all logits for rows where top-p applies to all, 0 for
            others, [N, 1]; None if there is no such row.

    Returns:
        Smallest kept logit, float [N, 1], and True for rows that may keep logits not in `values`, bool [N, 1]. The
        latter is None if there cannot be such a row.
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


def truncate(logits: torch.Tensor, params: DrawParams) -> torch.Tensor:
    """Set to -inf the logits that top-k or top-p exclude in `draw`.

    Rows at temperature 0 are unchanged.

    Args:
        logits: float32 [B, C] on the CPU.
        params: Sampling parameters of the rows.

    Returns:
        float32 [B, C], a copy.
    """
    values = logits.numpy().copy()
    for rows in params.rows(1, logits.shape[1]):
        if rows.keeps_all:
            continue
        index = np.arange(len(values)) if rows.index is None else rows.index
        floor = _kept(values[index], rows)[2]
        is_dropped = values[index] < floor
        if rows.is_greedy is not None:
            is_dropped &= ~rows.is_greedy
        values[index] = np.where(is_dropped, np.float32(-np.inf), values[index])
    return torch.from_numpy(values)


def min_p_span(min_p: float, temperature: float) -> float:
    """Return how far below the maximum a logit may be for min-p to keep it.

    The distance is infinite if `min_p` is 0 or sampling is greedy.

    Args:
        min_p: Minimum probability relative to the probability of the most likely token.
        temperature: Sampling temperature; 0 is greedy.
    """
    return -temperature * math.log(min_p) if min_p > 0 and temperature > 0 else math.inf


def keep_near(logits: torch.Tensor, span: torch.Tensor) -> torch.Tensor:
    """Set to -inf the logits that are too far below their row's maximum.

    Args:
        logits: Logits, [B, C].
        span: Largest permitted distance from the maximum, [B] (see `min_p_span`).

    Returns:
        Logits, [B, C].
    """
    lowest = logits.amax(1, keepdim=True) - span[:, None]
    return logits.masked_fill(logits < lowest, -torch.inf)


@dataclass(frozen=True, slots=True)
class RepetitionRule:
    """Parameters of repetition-aware sampling for B rows.

    A sampled token that occurs at least `max_repeats` times in the last `window` rows is sampled again.

    Attributes:
        window: Number of rows, int [B]; 0 is off.
        max_repeats: Number of occurrences, int [B].
    """

    window: torch.Tensor
    max_repeats: torch.Tensor


def is_repeated(drawn: torch.Tensor, history: torch.Tensor, rule: RepetitionRule) -> torch.Tensor:
    """Return True where a sampled id must be sampled again, bool [B, S].

    Args:
        drawn: Sampled ids, [B, S].
        history: Ids of the previous rows, latest first, with -1 for ids that do not count, [B, W, S].
        rule: Window and number of repetitions per row.
    """
    ages = torch.arange(history.shape[1], device=history.device)
    is_seen = (ages < rule.window[:, None])[..., None] & (history == drawn[:, None])
    return (is_seen.sum(1) >= rule.max_repeats[:, None]) & (rule.window > 0)[:, None]


def penalize(logits: torch.Tensor, is_seen: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
    """Apply the repetition penalty: divide positive logits of repeated ids by it, and multiply negative ones.

    Args:
        logits: Logits, [B, V].
        is_seen: True for ids that occurred before, bool [B, V].
        penalty: Penalty of each row, [B].

    Returns:
        Logits, [B, V].
    """
    factor = penalty[:, None]
    return torch.where(is_seen, torch.where(logits < 0, logits * factor, logits / factor), logits)


def advances(
    logits: torch.Tensor, stay: torch.Tensor, temperature: torch.Tensor, uniform: torch.Tensor
) -> torch.Tensor:
    """Return True for each row in which the alignment pointer advances, bool [B].

    The probability of advancing is 1 - P(stay).

    Args:
        logits: Logits of all ids of stream 0 in an audio row, float32 [B, C].
        stay: Column of the id that means "stay", [B].
        temperature: Divisor of the log odds, [B]; at 0 the pointer advances if P(advance) > 1/2.
        uniform: Noise in (0, 1), [B].
    """
    log_stay = logits.log_softmax(-1).gather(-1, stay[:, None]).squeeze(-1)
    log_odds = torch.log(-torch.expm1(log_stay)) - log_stay
    is_random = temperature > 0
    probability = torch.sigmoid(log_odds / torch.where(is_random, temperature, 1.0))
    return probability > torch.where(is_random, uniform, 0.5)
