"""Sum of the embeddings of all streams, and float32 products with constant weights, on a GPU."""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from vllm import envs


def embed_rows(
    table: torch.Tensor, ids: torch.Tensor, pad_id: int, pad_is_silent: bool, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the sum of the embeddings of all streams of each row, [N, H], in the table's dtype.

    The sum is computed in float32. Ids are not checked.

    Args:
        table: Embeddings of the whole vocabulary, [V, H].
        ids: Ids of all streams, [N, S].
        pad_id: Id of empty streams.
        pad_is_silent: True if `pad_id` contributes nothing except on stream 0.
        out: Output buffer, or None.
    """
    if table.device.type != "cpu":
        return embed_on_device(table, ids, pad_id, pad_is_silent, out)
    embedded = embed_on_host(table, ids, pad_id, pad_is_silent)
    return embedded if out is None else out.copy_(embedded)


def embed_on_host(table: torch.Tensor, ids: torch.Tensor, pad_id: int, pad_is_silent: bool) -> torch.Tensor:
    """Compute `embed_rows` in torch."""
    if table.dtype != torch.float32:
        rows = table[ids].float()
        if pad_is_silent:
            rows[:, 1:].masked_fill_((ids[:, 1:] == pad_id)[..., None], 0.0)
        return rows.sum(1).to(table.dtype)
    if not pad_is_silent or ids.shape[1] == 1:
        return F.embedding_bag(ids, table, mode="sum")
    return F.embedding_bag(ids[:, 1:], table, mode="sum", padding_idx=pad_id).add_(F.embedding(ids[:, 0], table))


def embed_on_device(
    table: torch.Tensor, ids: torch.Tensor, pad_id: int, pad_is_silent: bool, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Compute `embed_rows` in one launch, one program per row and block of columns."""
    assert table.stride(1) == 1, table.stride()
    (num_rows, num_streams), width = ids.shape, table.shape[1]
    embedded = table.new_empty(num_rows, width) if out is None else out
    assert embedded.is_contiguous(), embedded.stride()
    block = min(triton.next_power_of_2(width), 1024)
    _embed_kernel[num_rows, triton.cdiv(width, block)](
        embedded, table, ids, *ids.stride(), table.stride(0), pad_id, width, num_streams, pad_is_silent, block
    )
    return embedded


@triton.jit
def _embed_kernel(
    embedded: tl.tensor,  # [N, H], written
    table: tl.tensor,  # [V, H]
    ids: tl.tensor,  # [N, S] int32 or int64
    id_row_stride: tl.tensor,
    id_stream_stride: tl.tensor,
    table_stride: tl.tensor,
    pad_id: tl.tensor,
    width: tl.tensor,
    num_streams: tl.constexpr,
    pad_is_silent: tl.constexpr,
    block: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * block + tl.arange(0, block)
    inside = columns < width
    first = tl.load(ids + row * id_row_stride).to(tl.int64)
    total = tl.load(table + first * table_stride + columns, mask=inside, other=0.0).to(tl.float32)
    for stream in tl.static_range(1, num_streams):
        token = tl.load(ids + row * id_row_stride + stream * id_stream_stride).to(tl.int64)
        counted = width
        if pad_is_silent:
            counted = tl.where(token == pad_id, 0, width)
        total += tl.load(table + token * table_stride + columns, mask=columns < counted, other=0.0).to(tl.float32)
    tl.store(embedded + row * width + columns, total.to(embedded.dtype.element_ty), mask=inside)


ALIGNED, MAX_COPIED = 8, 1 << 16


class Float32Product:
    """Product `x @ weight.T` in float32 with a constant `weight` [N, H]: x [M, H] -> [M, N].

    cuBLAS is fast if rows of the result are multiples of 16 bytes. A small weight is therefore padded with zeros to a
    multiple of 8 rows, and the result is a view without the padding.
    """

    def __init__(self, weight: torch.Tensor):
        self.num_columns = len(weight)
        num_missing = -self.num_columns % ALIGNED if self.num_columns <= MAX_COPIED else 0
        self.weight = F.pad(weight, (0, 0, 0, num_missing)) if num_missing else weight
        self._is_mixed = weight.dtype != torch.float32 and not envs.VLLM_BATCH_INVARIANT
        if envs.VLLM_BATCH_INVARIANT and self.num_columns <= MAX_COPIED:
            self.weight = self.weight.float()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return `x @ weight.T` in float32, [M, N]; may be strided."""
        if self._is_mixed:
            product = torch.mm(x, self.weight.t(), out_dtype=torch.float32)
        else:
            product = F.linear(x.to(self.weight.dtype), self.weight).float()
        return product[:, : self.num_columns]
