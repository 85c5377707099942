"""CPU versions of vLLM's kernels for block tables, staged writes and input batches."""

import ctypes

import numpy as np
import torch


def _table(address: int, num_rows: int, stride: int) -> np.ndarray:
    """Return the int32 block table [num_rows, stride] at a memory address.

    Kernels that handle several KV-cache groups receive the addresses of their tables.
    """
    values = (ctypes.c_int32 * (num_rows * stride)).from_address(address)
    return np.ctypeslib.as_array(values).reshape(num_rows, stride)


def apply_write(
    output: torch.Tensor,  # [rows(, columns)], or with MULTI_GROUP [G] uint64 addresses of int32 tables
    output_stride: int | torch.Tensor,
    indices: torch.Tensor,  # [n] int32
    starts: torch.Tensor,  # [n] int32
    contents: torch.Tensor,  # [cu_lens[-1]]
    cu_lens: torch.Tensor,  # [n] int32
    group_ids: torch.Tensor | None,
    MULTI_GROUP: bool = False,
    **launch: object,
) -> None:
    """Apply staged writes: write i puts its part of `contents` at (indices[i], starts[i])."""
    rows, columns, values = indices.numpy(), starts.numpy(), contents.numpy()
    if not MULTI_GROUP and output.ndim == 1:
        assert len(values) == len(rows), "a write to a flat tensor is one element"
        output.numpy()[rows + columns] = values
        return
    begin = 0
    for i, end in enumerate(cu_lens.tolist()):
        if MULTI_GROUP:
            assert isinstance(output_stride, torch.Tensor)
            assert group_ids is not None
            group = int(group_ids[i])
            row = _table(int(output[group]), int(rows[i]) + 1, int(output_stride[group]))[-1]
        else:
            row = output.numpy()[rows[i]]
        row[columns[i] : columns[i] + end - begin] = values[begin:end]
        begin = end


def gather_block_tables(
    idx_mapping: torch.Tensor,  # [B] int64
    source_addresses: torch.Tensor,  # [G] uint64
    target_addresses: torch.Tensor,  # [G] uint64
    strides: torch.Tensor,  # [G] int64
    num_blocks: torch.Tensor,  # [G, max B] int32
    num_blocks_stride: int,
    num_reqs: int,
    **launch: object,
) -> None:
    """Copy the block-table rows of the batch, in its order; unused rows become 0."""
    slots = idx_mapping.numpy()
    for group, lengths in enumerate(num_blocks.numpy()):
        source_rows, target_rows = (
            _table(int(addresses[group]), len(lengths), int(strides[group]))
            for addresses in (source_addresses, target_addresses)
        )
        used = lengths[slots].max(initial=0)
        target_rows[:num_reqs, :used] = source_rows[slots, :used]
        target_rows[num_reqs:] = 0


def compute_slot_mappings(
    max_num_tokens: int,
    idx_mapping: torch.Tensor,  # [B] int64; negative: a row without blocks
    query_start_loc: torch.Tensor,  # [>= B + 1] int32
    pos: torch.Tensor,  # [N] int64
    table_addresses: torch.Tensor,  # [G] uint64
    strides: torch.Tensor,  # [G] int64
    block_sizes: torch.Tensor,  # [G] int32
    enabled: torch.Tensor,  # [G] bool
    context_sharded: torch.Tensor,
    slot_mappings: torch.Tensor,  # [G, max_num_tokens] int64, written
    slot_stride: int,
    context_rank: int,
    CP_SIZE: int,
    PAD_ID: int,
    **launch: object,
) -> None:
    """Compute the KV-cache slot of each token per group; `PAD_ID` after the last token."""
    assert CP_SIZE == 1, "context parallelism is not covered without a GPU"
    slots = idx_mapping.numpy()
    starts = query_start_loc.numpy()[: len(slots) + 1]
    slots, positions = np.repeat(slots, np.diff(starts)), pos.numpy()[: starts[-1]]
    num_rows = int(slots.max(initial=0)) + 1
    for group, out in enumerate(slot_mappings.numpy()):
        out[starts[-1] : max_num_tokens] = PAD_ID
        if not enabled[group]:
            out[: starts[-1]] = PAD_ID
            continue
        table = _table(int(table_addresses[group]), num_rows, int(strides[group]))
        block_size = int(block_sizes[group])
        blocks, offsets = np.divmod(positions, block_size)
        places = table[slots, blocks].astype(np.int64) * block_size + offsets
        out[: starts[-1]] = np.where(slots >= 0, places, PAD_ID)


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
    """Copy the next tokens of prefilling requests to the batch, and store the tokens that follow them."""
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
    """Compute the position of each token and the length of each request; lengths of unused entries are 0."""
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
    """Insert the previously sampled token of decoding requests, and compute each request's logits index."""
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
    """Set the sampled and rejected counts of requests that are still prefilling to 0."""
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
    """Append the sampled tokens of each request, up to W, to its slot, and update the number of computed tokens."""
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
    """Update the number of computed tokens after a step that sampled nothing."""
    slots = idx_mapping.numpy()
    num_computed_tokens.numpy()[slots] += np.diff(query_start_loc.numpy()[: len(slots) + 1])
