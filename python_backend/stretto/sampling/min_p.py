"""Min-p sampling, https://arxiv.org/abs/2407.01082.

A probability of at least `min_p` times the largest is a logit at most `-temperature * log(min_p)` below the largest, so
no sum is needed.
"""

import math

import torch


def span_of(min_p: float, temperature: float) -> float:
    """Return the largest distance of a kept logit from the maximum; infinite for `min_p` 0 or greedy draws."""
    return -temperature * math.log(min_p) if min_p > 0 and temperature > 0 else math.inf


def keep_near(logits: torch.Tensor, span: torch.Tensor) -> torch.Tensor:
    """Return `logits` [B, C] with -inf where they are more than `span` [B] below the row's maximum."""
    lowest = logits.amax(1, keepdim=True) - span[:, None]
    return logits.masked_fill(logits < lowest, -torch.inf)
