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
    """What B rows ask for: a token that came `max_repeats` times in the last `window` rows is drawn again, [B] each."""

    window: torch.Tensor
    max_repeats: torch.Tensor


def is_repeated(drawn: torch.Tensor, history: torch.Tensor, rule: RepetitionRule) -> torch.Tensor:
    """Whether each row and stream drew what it has said too often: [B, S] bool; never where the window is 0.

    drawn [B, S]; history [B, W, S]: the rows before, from the last one backwards, with -1 for what does not count.
    """
    ages = torch.arange(history.shape[1], device=history.device)
    is_seen = (ages < rule.window[:, None])[..., None] & (history == drawn[:, None])
    return (is_seen.sum(1) >= rule.max_repeats[:, None]) & (rule.window > 0)[:, None]


def penalize(logits: torch.Tensor, is_said: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
    """`logits` [B, V], less where `is_said` [B, V]: divided by `penalty` [B] or, where negative, multiplied with it."""
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
