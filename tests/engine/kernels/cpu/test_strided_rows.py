"""Rows that are views of a wider projection give the same bits as contiguous rows, in every call of vLLM's C++.

`reshape` copies only if it must: the heads of a projection become contiguous rows, but a single head stays a view.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from vllm import ir
from vllm.platforms import current_platform

from stretto.cpu_backend import depth as cpu_depth
from stretto.cpu_backend import products
from stretto.cpu_backend.depth import CpuDepth
from stretto.cpu_backend.int8 import Int8Product, has_int8
from stretto.family.base import DepthSpec
from tests.engine.kernels.gpu.test_depth import NUM_CODES, WIDTH, build, single_rank
from tests.engine.plain_depth import PlainDepth

current_platform.import_kernels()

HEAD_DIM, EPSILON = 32, 1e-6
NUM_HEADS, NUM_ROWS = (1, 2, 3), (1, 2, 7)
Compute = Callable[[torch.Tensor], torch.Tensor]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


WEIGHT = random(HEAD_DIM, seed=1)


def heads_of(x: torch.Tensor) -> torch.Tensor:
    return x.unflatten(1, (-1, HEAD_DIM))


def norm_of_heads(x: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(heads_of(x), (HEAD_DIM,), WEIGHT, EPSILON).flatten(1)


def registered_norm(x: torch.Tensor) -> torch.Tensor:
    assert products._fits_norm(x, WEIGHT, EPSILON)
    return ir.ops.rms_norm.impls[products.PROVIDER].impl_fn(heads_of(x), WEIGHT, EPSILON).flatten(1)


def product(x: torch.Tensor, multiply: type = products.Product) -> torch.Tensor:
    return multiply(random(48, x.shape[1], seed=2))(x)


def expected_product(x: torch.Tensor) -> torch.Tensor:
    return x @ random(48, x.shape[1], seed=2).T


# What is called, and what it should return.
CALLS: dict[str, tuple[Compute, Compute]] = {
    "head norms of a layer": (lambda x: products._normed_heads(x, (WEIGHT, EPSILON)), norm_of_heads),
    "registered norm": (registered_norm, norm_of_heads),
    "oneDNN product": (product, expected_product),
    "oneDNN product in int8": (lambda x: product(x, Int8Product), expected_product),
}
# Views [N, H] of rows that are not contiguous if there are several: columns of a projection, and a transpose.
VIEWS: dict[str, Callable[[int, int], torch.Tensor]] = {
    "columns": lambda rows, width: random(rows, 3 * width)[:, width : 2 * width],
    "transpose": lambda rows, width: random(width, rows).T,
}

# oneDNN refuses a transpose, and never misreads it.
CASES = [(name, view) for name in CALLS for view in VIEWS if (name, view) != ("oneDNN product", "transpose")]


@pytest.mark.parametrize("num_rows", NUM_ROWS)
@pytest.mark.parametrize("num_heads", NUM_HEADS)
@pytest.mark.parametrize(("name", "view"), CASES)
def test_strided_rows_give_the_bits_of_contiguous_rows(name: str, view: str, num_heads: int, num_rows: int) -> None:
    if "int8" in name and not has_int8(torch.float32):
        pytest.skip("the processor has no VNNI instructions")
    compute, expect = CALLS[name]
    x = VIEWS[view](num_rows, num_heads * HEAD_DIM)
    found = compute(x)
    assert torch.equal(found, compute(x.clone(memory_format=torch.contiguous_format)))
    torch.testing.assert_close(found, expect(x), rtol=0, atol=0.5 if "int8" in name else 1e-4)


@pytest.mark.parametrize("num_rows", NUM_ROWS)
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(1, 1), (2, 1), (3, 1), (2, 2), (3, 3)])
@torch.inference_mode()
def test_depth_states_match_the_torch_layers(
    num_heads: int, num_kv_heads: int, num_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rope = {"rope_type": "default", "rope_theta": 500000.0}
    normed = DepthSpec(32, 48, 2, num_heads, num_kv_heads, 8, EPSILON, rope, has_head_norms=True)
    for spec in (normed, replace(normed, has_head_norms=False), replace(normed, intermediate=42)):
        with single_rank(monkeypatch):
            modules = build(spec, 4, seed=1)
        plain = PlainDepth(modules)
        ours = CpuDepth(modules)
        for depth in (plain, ours):
            depth.prepare(num_rows)
        hidden = random(num_rows, WIDTH)
        codes = torch.arange(num_rows) % NUM_CODES
        torch.testing.assert_close(ours.begin(hidden, codes), plain.begin(hidden, codes), rtol=2e-5, atol=2e-5)
        for position in (2, 3):
            code = codes + (position - 1) * NUM_CODES
            torch.testing.assert_close(ours.next(code, position), plain.next(code, position), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("is_wide", [False, True], ids=["narrow", "wide"])
@torch.inference_mode()
def test_depth_states_do_not_depend_on_the_batch(is_wide: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch changes from frame to frame. 17 rows are padded to 18, and a single row to two if layers are wide."""
    if is_wide:
        monkeypatch.setattr(cpu_depth, "narrow_width", lambda: 1)
    rope = {"rope_type": "default", "rope_theta": 500000.0}
    with single_rank(monkeypatch):
        modules = build(DepthSpec(32, 48, 2, 2, 1, 16, EPSILON, rope), 6, seed=1)
    plain = PlainDepth(modules)
    together = CpuDepth(modules)
    alone = CpuDepth(modules)
    for depth in (plain, together, alone):
        depth.prepare(17)
    for num_rows in (3, 17, 3, 1):
        hidden = random(num_rows, WIDTH)
        codes = torch.arange(num_rows) % NUM_CODES
        expected = plain.begin(hidden, codes)
        states = together.begin(hidden, codes)
        first = alone.begin(hidden[:1], codes[:1])
        for position in range(2, 6):
            torch.testing.assert_close(states, expected, rtol=2e-5, atol=2e-5)
            assert torch.equal(first, states[:1])
            code = codes + (position - 1) * NUM_CODES
            expected = plain.next(code, position)
            states = together.next(code, position)
            first = alone.next(code[:1], position)
