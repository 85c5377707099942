"""What is much less likely than the likeliest is not drawn: min-p, https://arxiv.org/abs/2407.01082.

A probability of at least `min_p` times the largest is a logit that lies at most `-temperature * log(min_p)` below the
largest one: nothing has to be summed.
"""

import math

import torch


def span_of(min_p: float, temperature: float) -> float:
    """How far below the largest logit an id may lie; infinite where `min_p` is 0, or the likeliest is drawn anyway."""
    return -temperature * math.log(min_p) if min_p > 0 and temperature > 0 else math.inf


def keep_near(logits: torch.Tensor, span: torch.Tensor) -> torch.Tensor:
    """`logits` [B, C], -inf where they lie further than `span` [B] below the largest of their row."""
    lowest = logits.amax(1, keepdim=True) - span[:, None]
    return logits.masked_fill(logits < lowest, -torch.inf)
