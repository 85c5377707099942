"""Decision of the alignment pointer: stay on its entry, or advance to the next."""

import torch


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
