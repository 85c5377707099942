"""Two ways to keep a model from repeating itself: what it says too often is drawn again, or made less likely.

Repetition-aware sampling: what a stream has said too often lately is drawn again, from all that it might say. The rule
and its usual values, 2 repeats in 7 rows, are Higgs Audio v2's (`ras_win_len`, `ras_win_max_num_repeat`). As in the
`generate` of transformers it holds at temperature 0, too.

The penalty is CTRL's (https://arxiv.org/abs/1909.05858), as Hugging Face's `RepetitionPenaltyLogitsProcessor` has it.
"""

from dataclasses import dataclass

import torch


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
