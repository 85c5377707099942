"""Classifier-free guidance of a pair of requests."""

import torch


def guide(conditional: torch.Tensor, unconditional: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return `unconditional + scale * (conditional - unconditional)`, computed in float32.

    Args:
        conditional: Logits of the conditional requests, [B, ..., C].
        unconditional: Logits of the unconditional requests, [B, ..., C].
        scale: Guidance scales, [B].
    """
    conditional = conditional.float()
    unconditional = unconditional.float()
    scale = scale.view(-1, *[1] * (conditional.dim() - 1))
    return unconditional + scale * (conditional - unconditional)
