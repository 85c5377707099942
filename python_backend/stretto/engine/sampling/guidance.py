"""Classifier-free guidance of a pair of requests."""

import torch


def guide(conditional: torch.Tensor, unconditional: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return `unconditional + scale * (conditional - unconditional)` in float32 for logits [B, ..., C], scale [B]."""
    conditional = conditional.float()
    unconditional = unconditional.float()
    scale = scale.view(-1, *[1] * (conditional.dim() - 1))
    return unconditional + scale * (conditional - unconditional)
