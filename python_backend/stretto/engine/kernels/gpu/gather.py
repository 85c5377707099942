"""Gather of the ids of all streams: stream 0 from vLLM's batch, the others by slot and position."""

from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl


def gather_rows(rows: torch.Tensor, ids: Any, slots: Any, positions: Any, codes: torch.Tensor, pad_id: int) -> None:
    """Fill `rows` [P, S] with `ids` [N] and `codes` [R, T, S - 1] at `slots` and `positions` [N], then pads.

    Arguments of shape [N] are numpy arrays if the tables are in host memory, else tensors.
    """
    if isinstance(slots, np.ndarray):
        gather_on_host(rows.numpy(), ids, slots, positions, codes.numpy(), pad_id)
    else:
        gather_on_device(rows, ids, slots, positions, codes, pad_id)


def gather_on_host(
    rows: np.ndarray, ids: np.ndarray, slots: np.ndarray, positions: np.ndarray, codes: np.ndarray, pad_id: int
) -> None:
    """Compute `gather_rows` in numpy."""
    num_rows = len(ids)
    rows[:num_rows, 0] = ids
    rows[:num_rows, 1:] = codes[slots, positions]
    rows[num_rows:] = pad_id


def gather_on_device(
    rows: torch.Tensor,
    ids: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
    codes: torch.Tensor,
    pad_id: int,
) -> None:
    """Compute `gather_rows` in one kernel, one program per row."""
    num_streams = rows.shape[1]
    _gather_kernel[len(rows),](
        rows,
        ids,
        slots,
        positions,
        codes,
        len(ids),
        codes.stride(0),
        pad_id,
        num_streams,
        triton.next_power_of_2(num_streams),
        num_warps=1,
    )


# Avoid specialisation, so that one binary serves batches of any size.
@triton.jit(do_not_specialize=["num_rows"])
def _gather_kernel(
    rows: tl.tensor,  # [P, S] int32, written
    ids: tl.tensor,  # [N] int32
    slots: tl.tensor,  # [N] int64
    positions: tl.tensor,  # [N] int64
    codes: tl.tensor,  # [R, T, S - 1] int32
    num_rows: tl.tensor,
    codes_stride: tl.constexpr,
    pad_id: tl.constexpr,
    num_streams: tl.constexpr,
    block: tl.constexpr,
) -> None:
    row, streams = tl.program_id(0), tl.arange(0, block)
    inside = streams < num_streams
    values = tl.full((block,), pad_id, tl.int32)
    if row < num_rows:
        place = tl.load(slots + row).to(tl.int64) * codes_stride + tl.load(positions + row) * (num_streams - 1)
        is_code = inside & (streams > 0)
        values = tl.load(codes + place + streams - 1, mask=is_code, other=0)
        values = tl.where(streams == 0, tl.load(ids + row).to(tl.int32), values)
    tl.store(rows + row.to(tl.int64) * num_streams + streams, values, mask=inside)
