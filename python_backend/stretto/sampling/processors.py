"""Logits processors: min-p, repetition penalty, repetition-aware sampling, and the alignment pointer's decision."""

import math
from dataclasses import dataclass

import torch


def min_p_span(min_p: float, temperature: float) -> float:
    """Return how far below the maximum a logit may lie to be kept by min-p.

    Infinite if `min_p` is 0 or the draw greedy.
    Args:
        min_p: Minimum probability relative to that of the most likely token.
        temperature: Temperature of the draw.
    """
    return -temperature * math.log(min_p) if min_p > 0 and temperature > 0 else math.inf


def keep_near(logits: torch.Tensor, span: torch.Tensor) -> torch.Tensor:
    """Set logits to -inf that lie too far below their row's maximum.

    Args:
        logits: Logits, [B, C].
        span: Largest permitted distance from the maximum, [B], see `min_p_span`.

    Returns:
        Logits, [B, C].
    """
    lowest = logits.amax(1, keepdim=True) - span[:, None]
    return logits.masked_fill(logits < lowest, -torch.inf)


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
        drawn: Sampled ids, [B, S].
        history: Ids of the previous rows, latest first, with -1 for ids that do not count, [B, W, S].
        rule: Window and number of repetitions per row.
    """
    ages = torch.arange(history.shape[1], device=history.device)
    is_seen = (ages < rule.window[:, None])[..., None] & (history == drawn[:, None])
    return (is_seen.sum(1) >= rule.max_repeats[:, None]) & (rule.window > 0)[:, None]


def penalize(logits: torch.Tensor, is_said: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
    """Apply the repetition penalty: divide positive logits of seen ids by it, and multiply negative ones by it.

    Args:
        logits: Logits, [B, V].
        is_said: True for ids that occurred before, bool [B, V].
        penalty: Penalty of each row, [B].

    Returns:
        Logits, [B, V].
    """
    factor = penalty[:, None]
    return torch.where(is_said, torch.where(logits < 0, logits * factor, logits / factor), logits)


def advances(
    logits: torch.Tensor, stay: torch.Tensor, temperature: torch.Tensor, uniform: torch.Tensor
) -> torch.Tensor:
    """Return True where the alignment pointer advances, with P(advance) = 1 - P(stay): bool [B].

    Args:
        logits: Logits of all ids of stream 0 in an audio row, float32 [B, C].
        stay: Column of the id that means "stay", [B].
        temperature: Divisor of the log odds, [B]; at 0 the pointer advances if P(advance) > 1/2.
        uniform: Noise in (0, 1), [B].
    """
    log_stay = logits.log_softmax(-1).gather(-1, stay[:, None]).squeeze(-1)
    log_odds = torch.log(-torch.expm1(log_stay)) - log_stay
    is_random = temperature > 0
    probability = torch.sigmoid(log_odds / torch.where(is_random, temperature, 1.0))
    return probability > torch.where(is_random, uniform, 0.5)
