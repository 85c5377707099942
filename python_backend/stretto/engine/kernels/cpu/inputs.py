"""CPU twins of vLLM's kernels that build input batches and record sampled tokens.

Originals: vLLM 0.32.0, `vllm/v1/worker/gpu/input_batch.py`. `B` rows of a batch, `max B` request slots, `N` tokens.
"""

import numpy as np
import torch


def prepare_prefill_inputs(
    input_ids: torch.Tensor,  # [max N] int32, written
    next_prefill_tokens: torch.Tensor,  # [lookahead, max B] int32, written
    next_stride: int,
    num_lookahead: int,
    idx_mapping: torch.Tensor,  # [B] int64
    query_start_loc: torch.Tensor,  # [>= B + 1] int32
    all_token_ids: torch.Tensor,  # [max B, max_model_len] int32
    all_stride: int,
    prefill_lens: torch.Tensor,  # [max B] int32
    num_computed_tokens: torch.Tensor,  # [max B] int32
    **launch: object,
) -> None:
    """Copy each prefilling row's next tokens to the batch, and store the tokens that follow them."""
    ids, following, tokens = input_ids.numpy(), next_prefill_tokens.numpy(), all_token_ids.numpy()
    slots, starts = idx_mapping.numpy(), query_start_loc.numpy()
    for row in np.flatnonzero(num_computed_tokens.numpy()[slots] < prefill_lens.numpy()[slots]):
        slot, start, stop = slots[row], starts[row], starts[row + 1]
        done, prefill_len = int(num_computed_tokens[slot]), int(prefill_lens[slot])
        end = done + stop - start
        ids[start:stop] = tokens[slot, done:end]
        ahead = tokens[slot, end : min(end + num_lookahead, prefill_len)]
        following[:, slot] = 0
        following[: len(ahead), slot] = ahead


def prepare_pos_seq_lens(
    pos: torch.Tensor,  # [max N] int64, written
    seq_lens: torch.Tensor,  # [max B] int32, written
    idx_mapping: torch.Tensor,  # [B] int64
    query_start_loc: torch.Tensor,  # [>= B + 1] int32
    num_computed_tokens: torch.Tensor,  # [max B] int32
    max_num_reqs: int,
    **launch: object,
) -> None:
    """Compute the position of each token and the length of each row; lengths of unused rows are 0."""
    num_reqs = idx_mapping.shape[0]
    starts = query_start_loc.numpy()[: num_reqs + 1]
    query_lens = np.diff(starts)
    computed = num_computed_tokens.numpy()[idx_mapping.numpy()]
    lengths = seq_lens.numpy()
    np.add(computed, query_lens, out=lengths[:num_reqs])
    lengths[num_reqs:max_num_reqs] = 0
    offsets = np.repeat(computed - starts[:-1], query_lens)
    np.add(offsets, np.arange(starts[-1]), out=pos.numpy()[: starts[-1]])


def combine_sampled_and_draft_tokens(
    input_ids: torch.Tensor,  # [max N] int32, written
    idx_mapping: torch.Tensor,  # [B] int64
    last_sampled_tokens: torch.Tensor,  # [max B, 1] int64
    query_start_loc: torch.Tensor,  # [>= B + 1] int32
    seq_lens: torch.Tensor,  # [>= B] int32
    prefill_len: torch.Tensor,  # [max B] int32
    draft_tokens: torch.Tensor,
    draft_stride: int,
    cu_num_logits: torch.Tensor,  # [B + 1] int32
    logits_indices: torch.Tensor,  # [B] int64, written
    NUM_NEW_SAMPLED_TOKENS: int = 1,
    **launch: object,
) -> None:
    """Insert the previously sampled token into decoding rows and compute each row's logits index."""
    slots = idx_mapping.numpy()
    assert draft_tokens.shape[-1] == 0, "speculative decoding is not covered without a GPU"
    assert NUM_NEW_SAMPLED_TOKENS == 1, "a step that samples nothing is not covered without a GPU"
    last = query_start_loc.numpy()[1 : len(slots) + 1] - 1
    logits_indices.numpy()[:] = last
    decoding = seq_lens.numpy()[: len(slots)] > prefill_len.numpy()[slots]
    input_ids.numpy()[last[decoding]] = last_sampled_tokens.numpy()[slots[decoding], 0]


def get_num_sampled_and_rejected(
    num_sampled: torch.Tensor,  # [B], written
    num_rejected: torch.Tensor,  # [B], written
    seq_lens: torch.Tensor,  # [>= B] int32
    cu_num_logits: torch.Tensor,  # [B + 1] int32
    idx_mapping: torch.Tensor,  # [B] int64
    prefill_len: torch.Tensor,  # [max B] int32
) -> None:
    """Set the sampled and rejected counts of rows that are still prefilling to 0."""
    slots = idx_mapping.numpy()
    prefilling = seq_lens.numpy()[: len(slots)] < prefill_len.numpy()[slots]
    sampled, rejected = num_sampled.numpy(), num_rejected.numpy()
    sampled[prefilling] = 0
    np.subtract(np.diff(cu_num_logits.numpy()), sampled, out=rejected)
    rejected[prefilling] = 0


def post_update(
    idx_mapping: torch.Tensor,  # [B] int64; negative: skip
    num_computed_tokens: torch.Tensor,  # [max B] int32, written
    last_sampled_tokens: torch.Tensor,  # [max B, 1] int64, written
    output_bin_counts: torch.Tensor | None,  # [max B, V] int32, written
    bin_stride: int,
    sampled_tokens: torch.Tensor,  # [B, W] int64
    sampled_stride: int,
    num_sampled: torch.Tensor,  # [B]
    num_rejected: torch.Tensor,  # [B]
    query_start_loc: torch.Tensor | None,  # [>= B + 1] int32
    all_token_ids: torch.Tensor,  # [max B, max_model_len] int32, written
    all_stride: int,
    total_len: torch.Tensor,  # [max B] int32, written
    **launch: object,
) -> None:
    """Record the sampled tokens, the first of each row's W, in their slots and update the computed counts."""
    slots = idx_mapping.numpy()
    delta = -num_rejected.numpy()
    if query_start_loc is not None:
        delta = delta + np.diff(query_start_loc.numpy()[: len(slots) + 1])
    num_computed_tokens.numpy()[slots[slots >= 0]] += delta[slots >= 0]
    tokens, lengths, counts = sampled_tokens.numpy(), total_len.numpy(), num_sampled.numpy()
    rows = np.flatnonzero((counts > 0) & (slots >= 0))
    sampling, counts = slots[rows], counts[rows]
    last_sampled_tokens.numpy()[sampling, 0] = tokens[rows, counts - 1]
    row, column = np.nonzero(np.arange(tokens.shape[1]) < counts[:, None])
    of_row, new = sampling[row], tokens[rows[row], column]
    all_token_ids.numpy()[of_row, lengths[of_row] + column] = new
    lengths[sampling] += counts
    if output_bin_counts is not None:
        np.add.at(output_bin_counts.numpy(), (of_row, new), 1)


def post_update_num_computed_tokens(
    idx_mapping: torch.Tensor, num_computed_tokens: torch.Tensor, query_start_loc: torch.Tensor
) -> None:
    """Update the computed counts of a step that samples nothing."""
    slots = idx_mapping.numpy()
    num_computed_tokens.numpy()[slots] += np.diff(query_start_loc.numpy()[: len(slots) + 1])
