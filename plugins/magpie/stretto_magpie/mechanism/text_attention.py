"""Attention of the rows of a step to the texts of their requests, with a prior, as a custom operator."""

import itertools

import torch

LIBRARY = torch.library.Library("stretto_magpie", "FRAGMENT")  # opaque to torch.compile
LIBRARY.define(
    "attend(Tensor query, Tensor keys, Tensor values, Tensor slots, Tensor num_tokens, Tensor attended, "
    "Tensor(a!) read, float epsilon, int window) -> Tensor"
)
NUM_TOGETHER = 64  # rows whose keys a GPU gathers together


def attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    slots: torch.Tensor,
    num_tokens: torch.Tensor,
    attended: torch.Tensor,
    read: torch.Tensor,
    epsilon: float,
    window: int,
) -> torch.Tensor:
    """Return the attention output of each row, [N, Q * D]; zeros for a request without a text.

    Args:
        query: Queries, [N, Q * D].
        keys: Keys by slot, [R + 1, Q, T, D].
        values: Values, like `keys`.
        slots: Slot of each row, int32 [at least N]; R for rows that are not used.
        num_tokens: Number of tokens of the text in each slot, int32 [R + 1].
        attended: Position of the text around which the prior is centred, int32 [at least N]; outside of the text for
            no prior.
        read: Sums to which the mean attention of the newest row in each slot is added, float32 [R + 1, T]; [0, T] for
            none.
        epsilon: Factor of the attention outside the window of the prior.
        window: Number of positions of the window after the one attended to (`PriorSpec`); 0 for no prior.
    """
    output: torch.Tensor = torch.ops.stretto_magpie.attend(
        query, keys, values, slots, num_tokens, attended, read, epsilon, window
    )
    return output


def with_prior(
    weights: torch.Tensor, attended: torch.Tensor, num_tokens: torch.Tensor, epsilon: float, window: int
) -> torch.Tensor:
    """Return weights, float32 [N, Q, 1, T], with the authors' prior (`construct_inference_prior`), normalised again."""
    if not window:
        return weights
    positions = torch.arange(weights.shape[-1], device=weights.device)
    center = attended[:, None]
    is_near = (positions == (center - 1).clamp(min=1)) | ((positions >= center) & (positions <= center + window))
    weighted = torch.where(is_near[:, None, None], weights, weights * epsilon)
    weighted = weighted / weighted.sum(-1, keepdim=True)
    has_prior = (attended >= 0) & (attended < num_tokens)
    return torch.where(has_prior[:, None, None, None], weighted, weights)


def attend_on_host(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    slots: torch.Tensor,
    num_tokens: torch.Tensor,
    attended: torch.Tensor,
    read: torch.Tensor,
    epsilon: float,
    window: int,
) -> torch.Tensor:
    """Compute `attend` in torch, each row as a batch item of its own, so that it does not affect other rows."""
    heads = query.view(len(query), keys.shape[1], 1, keys.shape[3])
    output = torch.zeros_like(heads)
    first = 0
    for slot, same in itertools.groupby(slots[: len(query)].tolist()):
        rows = slice(first, first + len(list(same)))
        first = rows.stop
        size = int(num_tokens[slot])
        if not size:
            continue
        num_rows = rows.stop - rows.start
        scores = heads[rows].float() @ keys[slot, :, :size].float().transpose(1, 2).expand(num_rows, -1, -1, -1)
        weights = (scores * keys.shape[3] ** -0.5).softmax(-1)
        sizes = num_tokens[slot].expand(num_rows)
        weights = with_prior(weights, attended[rows], sizes, epsilon, window)
        output[rows] = (weights @ values[slot, :, :size].float().expand(num_rows, -1, -1, -1)).to(query.dtype)
        if len(read):
            read[slot, :size] += weights[-1, :, 0].mean(0)
    return output.view_as(query)


def attend_on_device(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    slots: torch.Tensor,
    num_tokens: torch.Tensor,
    attended: torch.Tensor,
    read: torch.Tensor,
    epsilon: float,
    window: int,
) -> torch.Tensor:
    """Compute `attend` in torch without waiting for the device."""
    heads = query.view(len(query), keys.shape[1], 1, keys.shape[3])
    positions = torch.arange(keys.shape[2], device=query.device)
    unused = len(num_tokens) - 1
    slots = slots[: len(query)].long()
    is_newest = torch.ones_like(slots, dtype=torch.bool)
    is_newest[:-1] = slots[1:] != slots[:-1]
    written = torch.where(is_newest, slots, unused)
    outputs = []
    for rows in torch.arange(len(query), device=query.device).split(NUM_TOGETHER):
        row_slots = slots[rows]
        sizes = num_tokens[row_slots]
        is_token = (positions < sizes[:, None])[:, None, None]
        scores = (heads[rows].float() @ keys[row_slots].float().transpose(2, 3)) * keys.shape[3] ** -0.5
        weights = scores.masked_fill(~is_token, -torch.inf).softmax(-1).masked_fill(~is_token, 0.0)
        weights = with_prior(weights, attended[rows], sizes, epsilon, window)
        outputs.append((weights @ values[row_slots].float()).to(query.dtype))
        if len(read):
            read.index_add_(0, written[rows], weights[:, :, 0].mean(1))
    return torch.cat(outputs).view_as(query)


def _made_like(query: torch.Tensor, *_: object) -> torch.Tensor:
    return torch.empty_like(query)


LIBRARY.impl("attend", attend_on_host, "CPU")
LIBRARY.impl("attend", attend_on_device, "CUDA")
LIBRARY.impl("attend", _made_like, "Meta")
