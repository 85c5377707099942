"""Logits processors: min-p, repetition penalty and repetition-aware sampling, the alignment pointer."""

import math
from dataclasses import dataclass

import torch


def span_of(min_p: float, temperature: float) -> float:
    """Return the largest distance of a kept logit from the maximum; infinite for `min_p` 0 or greedy draws."""
    return -temperature * math.log(min_p) if min_p > 0 and temperature > 0 else math.inf


def keep_near(logits: torch.Tensor, span: torch.Tensor) -> torch.Tensor:
    """Return `logits` [B, C] with -inf where they are more than `span` [B] below the row's maximum."""
    lowest = logits.amax(1, keepdim=True) - span[:, None]
    return logits.masked_fill(logits < lowest, -torch.inf)


@dataclass(frozen=True, slots=True)
class RepetitionRule:
    """Repetition-aware sampling of B rows.

    A token that occurs `max_repeats` times in the last `window` rows is sampled again.

    Attributes:
        window: Number of rows, int [B]; 0 is off.
        max_repeats: Number of occurrences, int [B].
    """

    window: torch.Tensor
    max_repeats: torch.Tensor


def is_repeated(drawn: torch.Tensor, history: torch.Tensor, rule: RepetitionRule) -> torch.Tensor:
    """Return where a sampled id occurs too often, bool [B, S]; never if the window is 0.

    Args:
        drawn: Sampled ids, [B, S].
        history: Earlier rows, the last one first, with -1 for ids that do not count, [B, W, S].
        rule: The rule.
    """
    ages = torch.arange(history.shape[1], device=history.device)
    is_seen = (ages < rule.window[:, None])[..., None] & (history == drawn[:, None])
    return (is_seen.sum(1) >= rule.max_repeats[:, None]) & (rule.window > 0)[:, None]


def penalize(logits: torch.Tensor, is_said: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
    """Return the logits after the repetition penalty, [B, V].

    Args:
        logits: Logits, [B, V].
        is_said: True for ids that occurred before, bool [B, V]. Their positive logits are divided by the penalty, and
            negative ones multiplied by it.
        penalty: Penalty of each row, [B].
    """
    factor = penalty[:, None]
    return torch.where(is_said, torch.where(logits < 0, logits * factor, logits / factor), logits)


def advances(
    logits: torch.Tensor, stay: torch.Tensor, temperature: torch.Tensor, uniform: torch.Tensor
) -> torch.Tensor:
    """Return True where a pointer advances, with P(advance) = 1 - P(stay): bool [B].

    Args:
        logits: Logits of all ids of stream 0 in an audio row, float32 [B, C].
        stay: Column that means "stay", [B].
        temperature: Divides the log odds, [B]; 0 advances where P(advance) > 1/2.
        uniform: Noise in (0, 1), [B].
    """
    log_stay = logits.log_softmax(-1).gather(-1, stay[:, None]).squeeze(-1)
    log_odds = torch.log(-torch.expm1(log_stay)) - log_stay
    is_random = temperature > 0
    probability = torch.sigmoid(log_odds / torch.where(is_random, temperature, 1.0))
    return probability > torch.where(is_random, uniform, 0.5)
