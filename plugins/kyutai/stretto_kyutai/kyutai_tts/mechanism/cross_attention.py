"""Cross-attention of the rows of a step to the speaker vectors of their requests, as a custom operator.

Absent vectors are the same for all requests. On a GPU, they are read from one shared entry of the table, which stays in
the cache, instead of from each slot's copy.
"""

import itertools

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

LIBRARY = torch.library.Library("stretto", "FRAGMENT")  # opaque to torch.compile
LIBRARY.define("cross_attend(Tensor query, Tensor keys, Tensor values, Tensor slots, Tensor num_present) -> Tensor")


def cross_attend(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, slots: torch.Tensor, num_present: torch.Tensor
) -> torch.Tensor:
    """Return the attention output of each row, [N, Q * D]. It does not depend on the other rows.

    Args:
        query: Queries, [N, Q * D].
        keys: Keys by slot, [R + 1, Q, V, D]; the last entry contains only absent vectors.
        values: Values, like `keys`.
        slots: Slot of each row, int32 [at least N].
        num_present: Number of vectors that are present in each slot, int32 [R + 1]; the others are absent.
    """
    attended: torch.Tensor = torch.ops.stretto.cross_attend(query, keys, values, slots, num_present)
    return attended


def attend_on_host(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, slots: torch.Tensor, num_present: torch.Tensor
) -> torch.Tensor:
    """Compute `cross_attend` in torch. Each row is a batch item of its own, so that no other row affects it."""
    heads = query.view(len(query), keys.shape[1], 1, keys.shape[3])
    attended = torch.empty_like(heads)
    first = 0
    for slot, same in itertools.groupby(slots[: len(query)].tolist()):
        rows = slice(first, first + len(list(same)))
        shape = rows.stop - rows.start, -1, -1, -1
        attended[rows] = F.scaled_dot_product_attention(
            heads[rows], keys[slot].expand(shape), values[slot].expand(shape)
        )
        first = rows.stop
    return attended.view_as(query)


MAX_BLOCK_NUMBERS = 1 << 12  # numbers in a block of keys; a larger block exceeds the registers of a thread


def attend_on_device(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, slots: torch.Tensor, num_present: torch.Tensor
) -> torch.Tensor:
    """Compute `cross_attend` in one launch, one program per row and head."""
    attended = torch.empty_like(query)
    num_slots, num_heads, num_vectors, head_dim = keys.shape
    block_dims = triton.next_power_of_2(head_dim)
    block_vectors = min(max(MAX_BLOCK_NUMBERS // block_dims, 16), triton.next_power_of_2(num_vectors))
    cross_attention_kernel[len(query), num_heads](
        attended, query, keys, values, slots, num_present, query.stride(0), num_slots - 1, num_heads, num_vectors,
        head_dim, block_vectors, block_dims, num_warps=4,
    )  # fmt: skip
    return attended


def _made_like(query: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(query)


LIBRARY.impl("cross_attend", attend_on_host, "CPU")
LIBRARY.impl("cross_attend", attend_on_device, "CUDA")
LIBRARY.impl("cross_attend", _made_like, "Meta")


@triton.jit(do_not_specialize=["absent"])
def cross_attention_kernel(
    attended: tl.tensor,  # [N, Q * D], written
    query: tl.tensor,  # [N, Q * D], with row stride `query_stride`
    keys: tl.tensor,  # [R + 1, Q, V, D]
    values: tl.tensor,  # [R + 1, Q, V, D]
    slots: tl.tensor,  # [N] int32
    num_present: tl.tensor,  # [R + 1] int32
    query_stride: tl.tensor,
    absent: tl.tensor,  # R, the entry of absent vectors
    num_heads: tl.constexpr,  # Q
    num_vectors: tl.constexpr,  # V
    head_dim: tl.constexpr,  # D
    block_vectors: tl.constexpr,
    block_dims: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    slot = tl.load(slots + row).to(tl.int64)
    present = tl.load(num_present + slot)
    dims = tl.arange(0, block_dims)
    inside = dims < head_dim
    scaled_query = tl.load(query + row * query_stride + head * head_dim + dims, mask=inside, other=0.0)
    scaled_query = scaled_query.to(tl.float32) * (head_dim**-0.5)
    largest = tl.full((), float("-inf"), tl.float32)
    total = tl.full((), 0.0, tl.float32)
    summed = tl.zeros((block_dims,), tl.float32)
    for first in range(0, num_vectors, block_vectors):
        places = first + tl.arange(0, block_vectors)
        entry = tl.where(places < present, slot, absent)
        at = ((entry * num_heads + head) * num_vectors + places) * head_dim
        block = at[:, None] + dims[None, :]
        is_read = (places < num_vectors)[:, None] & inside[None, :]
        key = tl.load(keys + block, mask=is_read, other=0.0).to(tl.float32)
        scores = tl.where(places < num_vectors, tl.sum(key * scaled_query[None, :], 1), float("-inf"))
        before = largest
        largest = tl.maximum(largest, tl.max(scores, 0))
        weights = tl.exp(scores - largest)
        kept = tl.exp(before - largest)
        value = tl.load(values + block, mask=is_read, other=0.0).to(tl.float32)
        total = total * kept + tl.sum(weights, 0)
        summed = summed * kept + tl.sum(value * weights[:, None], 0)
    written = attended + row * (num_heads * head_dim) + head * head_dim + dims
    tl.store(written, (summed / total).to(attended.dtype.element_ty), mask=inside)
