"""Guidance equals its formula, row by row."""

import torch

from stretto.engine.sampling.guidance import guide


def test_each_row_is_guided_by_its_own_scale() -> None:
    conditional, unconditional = torch.randn(3, 2, 5), torch.randn(3, 2, 5)
    guided = guide(conditional, unconditional, torch.tensor([1.0, 0.0, 3.0]))
    assert torch.allclose(guided[0], conditional[0], atol=1e-6)  # it adds and subtracts numbers of about 1
    assert torch.equal(guided[1], unconditional[1])
    assert torch.allclose(guided[2], 3 * conditional[2] - 2 * unconditional[2], atol=1e-5)


def test_guidance_is_computed_in_float32() -> None:
    assert guide(torch.ones(1, 2).bfloat16(), torch.zeros(1, 2).bfloat16(), torch.ones(1)).dtype == torch.float32
