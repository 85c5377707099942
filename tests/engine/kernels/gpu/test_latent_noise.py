"""Gaussian noise from the interpreted step kernel, against numpy and torch."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from stretto.engine.kernels.gpu.step_latents import gaussian_of
from stretto.engine.sampling.noise import gaussian

NUM_KEYS, BLOCK = 1 << 20, 1 << 10


@triton.jit
def _noise_kernel(noise: tl.tensor, keys: tl.tensor, block: tl.constexpr) -> None:
    at = tl.program_id(0) * block + tl.arange(0, block)
    tl.store(noise + at, gaussian_of(tl.load(keys + at).to(tl.uint32, bitcast=True)))


def noise_of(keys: torch.Tensor, block: int = BLOCK) -> torch.Tensor:
    """Return the noise of int32 `keys` [n], n a multiple of `block`."""
    noise = torch.empty(len(keys), device=keys.device)
    _noise_kernel[len(keys) // block,](noise, keys, block)
    return noise


@pytest.mark.slow
def test_noise_matches_numpy_and_torch() -> None:
    """Libraries may differ in the last bit of a logarithm or cosine, which rounding to float32 rarely shows."""
    keys = np.random.default_rng(0).integers(-(1 << 31), 1 << 31, NUM_KEYS).astype(np.int32)
    found = noise_of(torch.from_numpy(keys), 1 << 16)  # the interpreter runs one block after another
    for expected in (gaussian(keys), gaussian(torch.from_numpy(keys)).numpy()):
        assert (found.numpy() != expected).sum() <= 2
    assert abs(float(found.mean())) < 0.01
    assert abs(float(found.var()) - 1) < 0.01
