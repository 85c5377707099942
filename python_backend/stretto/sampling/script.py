"""The script pointer's one decision: stay on its entry, or advance to the next."""

import torch


def advances(
    logits: torch.Tensor, stay: torch.Tensor, temperature: torch.Tensor, uniform: torch.Tensor
) -> torch.Tensor:
    """Whether each pointer advances, with P(advance) = 1 - P(stay): [B] bool.

    logits [B, C] float32 over all that stream 0 may carry in an audio row; stay [B]: the column that means "stay";
    temperature [B] divides the log odds, and 0 advances where P(advance) > 1/2; uniform [B] in (0, 1).
    """
    log_stay = logits.log_softmax(-1).gather(-1, stay[:, None]).squeeze(-1)
    log_odds = torch.log(-torch.expm1(log_stay)) - log_stay
    is_random = temperature > 0
    probability = torch.sigmoid(log_odds / torch.where(is_random, temperature, 1.0))
    return probability > torch.where(is_random, uniform, 0.5)
