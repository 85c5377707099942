"""Kernel that sums the entries of codes over the codebooks of a group, in their order."""

import triton
import triton.language as tl
from torch import Tensor

COLUMNS = 128


def sum_on_device(
    out: Tensor, codes: Tensor, entries: Tensor, num_first: int, num_others: int, last_code: int, scale: float
) -> None:
    """Write the sum of entries over the first `num_first` codebooks, then over each group of `num_others` more.

    Args:
        out: Sums, float32 [B, n, groups · C]; written.
        codes: Codes, int64 [B, K, n], with any strides.
        entries: Entries of all codebooks, float32 [books, size, C].
        last_code: Code that replaces higher codes in groups after the first.
    """
    num_batch, _, num_steps = codes.shape
    _, size, num_channels = entries.shape
    num_groups = out.shape[2] // num_channels
    grid = num_batch * num_steps, num_groups, triton.cdiv(num_channels, COLUMNS)
    codebooks_kernel[grid](
        out, codes, entries, codes.stride(0), codes.stride(1), codes.stride(2), num_steps, size, num_channels,
        num_first, num_others, last_code, scale, COLUMNS, num_warps=1, enable_fp_fusion=False,
    )  # fmt: skip


@triton.jit(do_not_specialize=["codes_batch", "codes_book", "codes_step", "num_steps"])
def codebooks_kernel(
    out: tl.tensor,  # [B, n, groups · C], written
    codes: tl.tensor,  # [B, K, n] with these strides
    entries: tl.tensor,  # [books, size, C]
    codes_batch: tl.tensor,
    codes_book: tl.tensor,
    codes_step: tl.tensor,
    num_steps: tl.tensor,
    size: tl.tensor,
    num_channels: tl.tensor,
    num_first: tl.tensor,
    num_others: tl.tensor,
    last_code: tl.tensor,
    scale: tl.tensor,
    block: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1)
    channel = tl.program_id(2) * block + tl.arange(0, block)
    is_channel = channel < num_channels
    of_codes = codes + row // num_steps * codes_batch + row % num_steps * codes_step
    is_first = group == 0
    begin = tl.where(is_first, 0, num_first + (group - 1) * num_others)
    end = tl.where(is_first, num_first, begin + num_others)
    total = tl.zeros((block,), tl.float32)
    for book in range(begin, end):
        code = tl.load(of_codes + book * codes_book)
        code = tl.where(is_first, code, tl.minimum(code, last_code))
        total += tl.load(entries + (book * size + code) * num_channels + channel, is_channel, 0.0)
    tl.store(out + (row * tl.num_programs(1) + group) * num_channels + channel, total * scale, is_channel)
