"""One token per stream from masked logits: temperature, top-k, top-p and counter-based noise."""

from dataclasses import dataclass

import numpy as np
import torch

from python_backend.sampling.noise import gumbel


@dataclass(frozen=True, slots=True)
class DrawPlan:
    """What the host knows of a batch of draws, so that work that no row asks for is left out.

    num_candidates: how many of the largest logits any row may keep; 0 where some row keeps all of them.
    """

    is_random: bool
    num_candidates: int
    has_top_p: bool

    @classmethod
    def of(cls, temperature: np.ndarray, top_k: np.ndarray, top_p: np.ndarray) -> "DrawPlan":
        """The plan for rows with these parameters, [B] each; greedy rows need one candidate."""
        random = temperature > 0
        if not random.any():
            return cls(False, 1, False)
        top_k, top_p = top_k[random], top_p[random]
        return cls(True, int(top_k.max()) if top_k.all() else 0, bool((top_p < 1).any()))


@dataclass(frozen=True, slots=True)
class DrawParams:
    """Sampling parameters of B rows: temperature float32 [B] (0 greedy), top_k int [B] (0 off), top_p float32 [B]."""

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor


def draw(
    logits: torch.Tensor, token_ids: torch.Tensor, keys: torch.Tensor, params: DrawParams, plan: DrawPlan
) -> torch.Tensor:
    """The token id drawn for each row and stream.

    logits [B, S, C] float32, -inf where a token may not come; token_ids [S, C]: what the columns stand for;
    keys [B, S] from `stream_keys`. Returns [B, S] of `token_ids`' type.
    """
    streams = torch.arange(logits.shape[1], device=logits.device)
    if not plan.is_random:
        return token_ids[streams, logits.argmax(-1)]
    is_random = (params.temperature > 0)[:, None]
    temperature = torch.where(is_random, params.temperature[:, None], 1.0)[..., None]
    if plan.num_candidates == 0 and not plan.has_top_p:
        noisy = (logits / temperature).add_(gumbel(keys[..., None], token_ids))
        return token_ids[streams, torch.where(is_random, noisy.argmax(-1), logits.argmax(-1))]
    size = min(plan.num_candidates, logits.shape[-1]) or logits.shape[-1]
    values, columns = logits.topk(size, dim=-1)
    candidates = token_ids[streams[:, None], columns]
    kept = _filter(values / temperature, params, plan)
    best = kept.add_(gumbel(keys[..., None], candidates)).argmax(-1, keepdim=True)
    best = torch.where(is_random[..., None], best, 0)
    return candidates.gather(-1, best).squeeze(-1)


def _filter(values: torch.Tensor, params: DrawParams, plan: DrawPlan) -> torch.Tensor:
    """`values` [B, S, C], sorted from the largest, with what top-k and then top-p leave out set to -inf."""
    ranks = torch.arange(values.shape[-1], device=values.device)
    top_k = torch.where(params.top_k > 0, params.top_k, values.shape[-1])
    values = values.masked_fill(ranks >= top_k[:, None, None], -torch.inf)
    if plan.has_top_p:
        probabilities = values.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities
        values = values.masked_fill(before >= params.top_p[:, None, None], -torch.inf)
    return values
