"""Comparison of a model in bfloat16 with the same model in float32."""

import math

import torch
from torch import nn

UNIT_ROUNDOFF = torch.finfo(torch.bfloat16).eps / 2
NUM_DEVIATIONS = 4


def assert_near_in_half_precision(rounded: torch.Tensor, exact: torch.Tensor, *parts: nn.Module) -> None:
    """Assert that a result in bfloat16 differs from the one in float32, but only by rounding errors.

    Each layer with weights rounds its input, its weights and its result, each by at most `UNIT_ROUNDOFF` of the
    magnitude. These errors are independent, so their squares add up.

    Args:
        rounded: Result of the parts in bfloat16.
        exact: Result of the same parts in float32.
        parts: Modules that the result passes through.
    """
    layers = [layer for part in parts for layer in part.modules() if next(layer.parameters(False), None) is not None]
    deviation = UNIT_ROUNDOFF * math.sqrt(3 * len(layers))
    error = ((rounded.float() - exact).norm() / exact.norm()).item()
    assert 0 < error < NUM_DEVIATIONS * deviation
