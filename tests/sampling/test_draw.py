"""Temperature, top-k and top-p against a plain loop over every row, stream and token."""

import math

import numpy as np
import pytest
import torch

from python_backend.sampling.draw import DrawParams, DrawPlan, draw
from python_backend.sampling.noise import seed_key, stream_keys
from tests.reference import noise as reference

ROWS, STREAMS, CODES, SEED = 12, 3, 40, 5
FIRST_ID = 100


def slow_draw(logits: list[float], ids: list[int], position: int, stream: int, params: tuple[float, int, float]) -> int:
    temperature, top_k, top_p = params
    ranked = sorted(range(len(ids)), key=lambda column: -logits[column])
    if temperature == 0:
        return ids[ranked[0]]
    kept = ranked[: top_k or None]
    weights = [math.exp((logits[column] - logits[kept[0]]) / temperature) for column in kept]
    kept = [c for i, c in enumerate(kept) if math.fsum(weights[:i]) / math.fsum(weights) < top_p]

    def score(column: int) -> float:
        noise = reference.uniform(SEED, position, stream, ids[column])
        return logits[column] / temperature - math.log(-math.log(noise))

    return ids[max(kept, key=score)]


def params_of(kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    temperature = random.choice([0.0, 0.5, 1.3], ROWS).astype(np.float32)
    top_k = random.choice([1, 5, 40], ROWS)
    top_p = random.choice([1.0, 0.5, 0.9], ROWS).astype(np.float32)
    off_k, off_p = np.zeros(ROWS, np.int64), np.ones(ROWS, np.float32)
    return {
        "greedy": (0 * temperature, top_k, top_p),
        "plain": (temperature, off_k, off_p),
        "top_k": (temperature, top_k, off_p),
        "top_p": (temperature, off_k, top_p),
        "all": (temperature, top_k * (np.arange(ROWS) % 2), top_p),
    }[kind]


@pytest.mark.parametrize("kind", ["greedy", "plain", "top_k", "top_p", "all"])
def test_draws_are_the_plain_loop_s(kind: str) -> None:
    temperature, top_k, top_p = params_of(kind)
    logits = 3 * torch.randn(ROWS, STREAMS, CODES, generator=torch.Generator().manual_seed(1))
    logits[:, :, 7] = -torch.inf
    positions = torch.arange(ROWS) * 3
    keys = stream_keys(torch.full((ROWS,), seed_key(SEED), dtype=torch.int32), positions, STREAMS)
    ids = FIRST_ID + torch.arange(STREAMS * CODES).view(STREAMS, CODES)
    params = DrawParams(torch.from_numpy(temperature), torch.from_numpy(top_k), torch.from_numpy(top_p))
    drawn = draw(logits, ids, keys, params, DrawPlan.of(temperature, top_k, top_p))
    for row in range(ROWS):
        for stream in range(STREAMS):
            wanted = (float(temperature[row]), int(top_k[row]), float(top_p[row]))
            slow = slow_draw(logits[row, stream].tolist(), ids[stream].tolist(), 3 * row, stream, wanted)
            assert drawn[row, stream].item() == slow, (row, stream, wanted)


def test_a_row_draws_the_same_whatever_the_others_ask_for() -> None:
    logits = torch.randn(2, 1, CODES, generator=torch.Generator().manual_seed(2))
    keys = stream_keys(torch.tensor([3, 3], dtype=torch.int32), torch.tensor([8, 9]), 1)
    ids = torch.arange(CODES)[None]

    def first(temperature: list[float], top_k: list[int], top_p: list[float]) -> int:
        t, k, p = np.float32(temperature), np.int64(top_k), np.float32(top_p)
        rows = len(temperature)
        params = DrawParams(*map(torch.from_numpy, (t, k, p)))
        return int(draw(logits[:rows], ids, keys[:rows], params, DrawPlan.of(t, k, p))[0, 0])

    alone = first([0.8], [5], [1.0])
    assert alone == first([0.8, 0.0], [5, 0], [1.0, 1.0])
    assert alone == first([0.8, 1.0], [5, 0], [1.0, 1.0])
    assert alone == first([0.8, 1.0], [5, 9], [1.0, 0.4])
