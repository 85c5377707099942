"""Classifier-free guidance of raw logits."""

import torch


def guide(conditional: torch.Tensor, unconditional: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """`unconditional + scale * (conditional - unconditional)`, in fp32: [B, ..., C] twice, [B] -> [B, ..., C]."""
    conditional, unconditional = conditional.float(), unconditional.float()
    scale = scale.view(-1, *[1] * (conditional.dim() - 1))
    return unconditional + scale * (conditional - unconditional)
