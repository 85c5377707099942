"""Optimiser: Muon for the layers' matrices, and AdamW for the embedding table, the head and the norms.

Muon (Jordan et al. 2024) replaces each matrix's momentum with the nearest orthogonal matrix, which is computed by five
Newton-Schulz iterations with the published coefficients.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from training.tiny.network import Network

MUON_RATE = 0.02
ADAM_RATE = 2.5e-3
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrices: Tensor) -> Tensor:
    """Return approximations of the (semi-)orthogonal matrices nearest to [N, rows, columns], in bfloat16."""
    a, b, c = _COEFFICIENTS
    x = matrices.bfloat16()
    tall = x.shape[1] > x.shape[2]
    x = x.transpose(1, 2) if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.transpose(1, 2) if tall else x).float()


@torch.no_grad()
def clip(parameters: Sequence[Tensor]) -> Tensor:
    """Scale all gradients to a joint norm of at most 1; return the norm before scaling."""
    gradients = [weight.grad for weight in parameters if weight.grad is not None]
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    scale = (1 / (norm + 1e-6)).clamp(max=1.0)  # on the device: a float would wait for it
    for gradient in gradients:
        gradient.mul_(scale)
    return norm


class Optimiser:
    """Pair of both optimisers, with a common learning-rate scale in [0, 1]."""

    def __init__(self, network: Network):
        self._matrices = [weight for weight in network.model.layers.parameters() if weight.dim() == 2]
        inner = {id(weight) for weight in self._matrices}
        head = network.lm_head.weight
        others = [weight for weight in network.parameters() if id(weight) not in inner and weight is not head]
        groups = [{"params": [head], "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
        self._adam = torch.optim.AdamW(groups, lr=ADAM_RATE, betas=(0.9, 0.98), fused=True)
        self._momenta = [torch.zeros_like(weight) for weight in self._matrices]
        self._parameters = list(network.parameters())

    def zero_grad(self) -> None:
        for weight in self._parameters:
            weight.grad = None

    def step(self, scale: float) -> Tensor:
        """Make one update at `scale` times the full rates; return the gradient norm before clipping."""
        norm = clip(self._parameters)
        for group in self._adam.param_groups:
            group["lr"] = ADAM_RATE * scale
        self._adam.step()
        self._muon(MUON_RATE * scale)
        return norm

    @torch.no_grad()
    def _muon(self, rate: float) -> None:
        by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for weight, momentum in zip(self._matrices, self._momenta, strict=True):
            assert weight.grad is not None
            momentum.lerp_(weight.grad, 0.05)
            by_shape[weight.shape].append((weight, weight.grad.lerp(momentum, 0.95)))
        for shape, pairs in by_shape.items():
            updates = orthogonalise(torch.stack([update for _, update in pairs]))
            size = max(1.0, shape[0] / shape[1]) ** 0.5
            for (matrix, _), update in zip(pairs, updates, strict=True):
                matrix.mul_(1 - rate * 0.01).add_(update, alpha=-rate * size)

    def state_dict(self) -> dict[str, Any]:
        return {"adam": self._adam.state_dict(), "momenta": self._momenta}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._adam.load_state_dict(state["adam"])
        for momentum, saved in zip(self._momenta, state["momenta"], strict=True):
            momentum.copy_(saved)
