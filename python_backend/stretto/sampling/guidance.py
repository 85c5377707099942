"""Classifier-free guidance of raw logits."""

import torch


def guide(conditional: torch.Tensor, unconditional: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return `unconditional + scale * (conditional - unconditional)` in float32, [B, ..., C]; `scale` is [B]."""
    conditional, unconditional = conditional.float(), unconditional.float()
    scale = scale.view(-1, *[1] * (conditional.dim() - 1))
    return unconditional + scale * (conditional - unconditional)
