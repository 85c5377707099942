"""CPU twins of vLLM's kernels for KV block tables and staged writes.

Originals: vLLM 0.32.0, `vllm/v1/worker/gpu/block_table.py` and `buffer_utils.py`. `G` is the number of KV cache groups.
"""

import ctypes

import numpy as np
import torch


def _table(address: int, num_rows: int, stride: int) -> np.ndarray:
    """Return the int32 block table [num_rows, stride] at `address`, which grouped kernels take instead of a tensor."""
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
    """Copy the block-table rows of the batch in its order; missing rows become 0."""
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
    """Compute the slot of each token in each group's KV cache; `PAD_ID` after the last token."""
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
