"""Top-k and top-p limits from the interpreted kernel are bit-identical to bisections over all floats."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from stretto.engine.kernels.gpu.step_draw import kth_largest_of, nucleus_of

COLUMNS = 256


@triton.jit
def limits_kernel(
    out: tl.tensor, values: tl.tensor, top_ks: tl.tensor, top_ps: tl.tensor, temperature: tl.tensor
) -> None:
    row = tl.program_id(0)
    line = tl.load(values + row * 256 + tl.arange(0, 256))
    floor = kth_largest_of(line, tl.load(top_ks + row))
    tl.store(out + 2 * row, floor)
    tl.store(out + 2 * row + 1, nucleus_of(line, floor, temperature, tl.load(top_ps + row)))


def ordered_of(values: np.ndarray) -> np.ndarray:
    bits = values.view(np.int32).astype(np.int64)
    return np.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def float_of(ordered: int) -> np.float32:
    bits = np.array([ordered], np.int64).astype(np.int32)
    return np.where(bits < 0, bits ^ 0x7FFFFFFF, bits).astype(np.int32).view(np.float32)[0]


def bisected(low: int, high: int, is_high: object) -> int:
    """Return the first integer in (low, high] for which `is_high` is true."""
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (low, middle) if is_high(middle) else (middle, high)  # type: ignore[operator]
    return high


def limits(values: np.ndarray, top_k: int, top_p: np.float32, temperature: np.float32) -> list[np.float32]:
    """Return the k-th largest value, and the smallest float above which less than `top_p` of the mass lies."""
    ordered = ordered_of(values)
    floor = bisected(int(ordered.min()) - 1, int(ordered.max()) + 1, lambda m: (ordered >= m).sum() < top_k) - 1
    weights = np.exp((values - values.max()) / temperature)

    def mass_above(order: int) -> np.float32:
        return np.where(ordered > order, weights, np.float32(0)).sum(dtype=np.float32)

    wanted = top_p * mass_above(floor - 1)
    high = bisected(floor - 1, int(ordered.max()), lambda m: mass_above(m) < wanted)
    return [float_of(floor), float_of(high)]


@pytest.mark.parametrize("step", [0.0, 0.5, 4.0])
@pytest.mark.parametrize("shift", [0.0, -30.0, 30.0])
def test_sampling_limits_match_bisection_over_all_floats(step: float, shift: float) -> None:
    """Logits have ties (multiples of `step`), zeros of both signs, and columns that cannot be sampled."""
    random, rows = np.random.default_rng(int(10 * step + abs(shift))), 6
    values = random.normal(shift, 4, (rows, COLUMNS)).astype(np.float32)
    if step:
        values = np.round(values / step) * np.float32(step)
    values[:2, ::7], values[2:4, ::3] = -np.inf, -0.0
    top_k = np.array([1, 2, 50, 200, 7, 255], np.int32)
    top_p, temperature = np.array([0.9, 0.5, 0.99, 0.1, 0.0, 0.75], np.float32), np.float32(0.8)
    out = torch.zeros(rows, 2)
    limits_kernel[rows,](
        out, torch.from_numpy(values), torch.from_numpy(top_k), torch.from_numpy(top_p), float(temperature)
    )
    expected = [limits(*each, temperature) for each in zip(values, top_k, top_p, strict=True)]
    assert out.numpy().view(np.int32).tolist() == np.array(expected, np.float32).view(np.int32).tolist()
