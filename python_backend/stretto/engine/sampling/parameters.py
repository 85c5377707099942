"""Sampling parameters of a batch: temperature, top-k and top-p of each row, and of each pair of row and stream."""

from dataclasses import dataclass, field

import numpy as np
import torch

from stretto.engine.sampling.candidates import group_width

FIRST_REACH = 128  # number of largest logits to examine first for top-p without top-k


@dataclass(frozen=True, slots=True)
class DrawPlan:
    """Batch properties known on the host, used to skip operations that no row needs."""

    is_random: bool
    has_top_p: bool

    @classmethod
    def from_parameters(cls, temperature: np.ndarray, top_p: np.ndarray) -> "DrawPlan":
        """Return the plan for a batch of B rows, given temperatures [B] (0 is greedy) and top-p [B] (1 is off)."""
        random = temperature > 0
        return cls(bool(random.any()), bool((top_p[random] < 1).any()))


@dataclass(frozen=True, slots=True)
class PairRows:
    """Sampling parameters of N (row, stream) pairs, [N, 1] each; a greedy pair has top-k 1 and temperature 1.

    Attributes:
        index: Position of each pair in the batch, [N]; None for all pairs in order.
        first_column: First column of the pair's stream in the flattened table of token ids, [N, 1].
        reach: Number of largest logits to examine first.
        is_open: True for pairs without top-k; None if all pairs have it.
        is_greedy: True for pairs at temperature 0; None if there are none.
        keeps_all: True if no pair uses top-k or top-p.
        grouping: Width and number of column groups (`group_width`) for a single pair with top-k, but without top-p;
            None for other pairs.
    """

    index: np.ndarray | None
    first_column: np.ndarray
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
    def from_parameters(cls, params: "DrawParams", num_streams: int, num_columns: int) -> "list[PairRows]":
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
        first_column = np.tile(np.arange(num_streams) * num_columns, len(params.top_k))[:, None]
        is_open = top_k == num_columns
        reach = np.where(is_open, min(FIRST_REACH, num_columns), top_k)
        columns = first_column, temperature, top_k, top_p, reach, is_open, ~is_random
        keeps_all = (is_open & (top_p >= 1))[:, 0]
        parts = [group for group in (keeps_all, ~keeps_all) if group.any()]
        indices = [None if len(parts) == 1 else np.flatnonzero(group) for group in parts]
        return [cls._part(index, columns, params.of_all, num_columns) for index in indices]

    @classmethod
    def _part(
        cls, index: np.ndarray | None, columns: tuple[np.ndarray, ...], of_all: bool, num_columns: int
    ) -> "PairRows":
        if index is not None:
            columns = tuple(column[index] for column in columns)
        first_column, temperature, top_k, top_p, reach, is_open, is_greedy = columns
        has_top_p = bool((top_p < 1).any())
        width = group_width(num_columns, int(reach.max()))
        is_single = len(first_column) == 1 and not (has_top_p or is_open[0, 0] or is_greedy[0, 0])
        return cls(
            index, first_column, temperature, top_k, top_p, reach,
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
    _rows: dict[tuple[int, int], list[PairRows]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def rows(self, num_streams: int, num_columns: int) -> list[PairRows]:
        """Return the parameters of each row and stream, for logits of S streams and C columns."""
        shape = num_streams, num_columns
        if shape not in self._rows:
            self._rows[shape] = PairRows.from_parameters(self, *shape)
        return self._rows[shape]
