"""Sampling of token ids on the device of their logits."""

import torch

from stretto.engine.kernels.gpu.draw import draw_on_device
from stretto.engine.sampling.draw import draw as draw_on_host
from stretto.engine.sampling.parameters import DrawParams, DrawPlan


def draw(
    logits: torch.Tensor, token_ids: torch.Tensor, keys: torch.Tensor, params: DrawParams, plan: DrawPlan
) -> torch.Tensor:
    """Sample ids as `sampling.draw` does, on the device of `logits`."""
    if logits.device.type == "cpu":
        return draw_on_host(logits, token_ids, keys, params, plan)
    return draw_on_device(logits, token_ids, keys, params)
