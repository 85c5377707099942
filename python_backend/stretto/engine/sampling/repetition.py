"""Repetition-aware sampling, and the penalty for ids that occurred before."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class RepetitionRule:
    """Parameters of repetition-aware sampling for B rows.

    A sampled token that occurs at least `max_repeats` times in the last `window` rows is sampled again.

    Attributes:
        window: Number of rows, int [B]; 0 is off.
        max_repeats: Number of occurrences, int [B].
    """

    window: torch.Tensor
    max_repeats: torch.Tensor


def is_repeated(drawn: torch.Tensor, history: torch.Tensor, rule: RepetitionRule) -> torch.Tensor:
    """Return True where a sampled id must be sampled again, bool [B, S].

    Args:
        history: Ids of the previous rows, latest first, with -1 for ids that do not count, [B, W, S].
    """
    ages = torch.arange(history.shape[1], device=history.device)
    is_seen = (ages < rule.window[:, None])[..., None] & (history == drawn[:, None])
    return (is_seen.sum(1) >= rule.max_repeats[:, None]) & (rule.window > 0)[:, None]


def penalize(logits: torch.Tensor, is_seen: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
    """Apply the penalty [B] to seen ids in logits [B, V]: divide positive logits by it, multiply negative ones."""
    factor = penalty[:, None]
    return torch.where(is_seen, torch.where(logits < 0, logits * factor, logits / factor), logits)
