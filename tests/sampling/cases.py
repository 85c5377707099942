"""Batches of draws that a fast implementation may get wrong, with the reference's results."""

from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st

from stretto.engine.sampling.noise import seed_key, stream_keys
from stretto.engine.sampling.parameters import DrawParams, DrawPlan
from stretto.testing.noise import uniform
from tests.reference import draw as reference

FIRST_ID, UNDECIDED = 100, 1e-4


@dataclass(frozen=True)
class Case:
    """B rows of S streams with C columns; each row has its own seed, position and parameters.

    `of_all` is that of `DrawParams`.
    """

    logits: torch.Tensor
    seeds: list[int]
    positions: list[int]
    temperature: np.ndarray
    top_k: np.ndarray
    top_p: np.ndarray
    of_all: bool = False

    @property
    def token_ids(self) -> torch.Tensor:
        streams, columns = self.logits.shape[1:]
        return FIRST_ID + torch.arange(streams * columns).view(streams, columns)

    @property
    def keys(self) -> torch.Tensor:
        seeds = np.array([seed_key(seed) for seed in self.seeds], np.int32)
        return torch.from_numpy(stream_keys(seeds, np.array(self.positions, np.int32), self.logits.shape[1]))

    @property
    def params(self) -> DrawParams:
        return DrawParams(*map(torch.from_numpy, (self.temperature, self.top_k, self.top_p)), of_all=self.of_all)

    @property
    def plan(self) -> DrawPlan:
        return DrawPlan.from_parameters(self.temperature, self.top_p)

    def row(self, index: int) -> "Case":
        """Return a single row of the batch."""
        part = slice(index, index + 1)
        arrays = (values[part].copy() for values in (self.temperature, self.top_k, self.top_p))
        return Case(self.logits[part].clone(), self.seeds[part], self.positions[part], *arrays, of_all=self.of_all)

    def check(self, drawn: torch.Tensor) -> None:
        """Check `drawn` [B, S] against the reference, except where two tokens are nearly equal."""
        for row in range(len(self.seeds)):
            wanted = float(self.temperature[row]), int(self.top_k[row]), float(self.top_p[row])
            for stream, ids in enumerate(self.token_ids.tolist()):

                def noise(token: int, row: int = row, stream: int = stream) -> float:
                    return uniform(self.seeds[row], self.positions[row], stream, token)

                token, lead = reference.draw(self.logits[row, stream].tolist(), ids, noise, *wanted, self.of_all)
                assert lead < UNDECIDED or drawn[row, stream] == token, (row, stream, wanted)


def random_case(seed: int, shape: tuple[int, int, int], step: float = 0.0, masked: float = 0.0) -> Case:
    """Return normal logits, rounded to multiples of `step` so that many tie, with a share `masked` at -inf."""
    random = np.random.default_rng(seed)
    rows, streams, columns = shape
    logits = 3 * random.standard_normal(shape).astype(np.float32)
    if step:
        logits = np.round(logits / step).astype(np.float32) * np.float32(step)
    is_masked = random.random(shape) < masked
    np.put_along_axis(is_masked, random.integers(0, columns, (rows, streams, 1)), False, axis=2)
    return Case(
        torch.from_numpy(np.where(is_masked, np.float32(-np.inf), logits)),
        random.integers(0, 1 << 62, rows).tolist(),
        random.integers(0, 30_000, rows).tolist(),
        random.choice(np.float32([0, 0.3, 0.8, 1, 2.5]), rows),
        random.choice([0, 0, 1, 2, 5, 20, columns - 1, columns, columns + 7], rows).clip(0),
        random.choice(np.float32([1, 1, 1e-6, 0.3, 0.8, 0.95]), rows),
        of_all=bool(seed % 2),
    )


def cases(max_rows: int = 6, max_columns: int = 150) -> st.SearchStrategy[Case]:
    """Return cases with few and many columns, distinct logits and ties, and none, some or nearly all masked."""
    shapes = st.tuples(st.integers(1, max_rows), st.integers(1, 3), st.integers(1, max_columns))
    steps, masked = st.sampled_from([0.0, 0.5, 4.0, 100.0]), st.sampled_from([0.0, 0.3, 0.95, 1.0])
    return st.builds(random_case, st.integers(0, 1 << 30), shapes, steps, masked)
