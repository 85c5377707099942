"""Attention among the few tokens of a row; in float32 on a GPU, as a custom operator.

torch computes float32 attention with grouped heads by eleven operators, whose products may depend on the number of
rows. Here, a kernel computes all tokens of a row in one head, so that a row does not depend on the others.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

LIBRARY = torch.library.Library("stretto", "FRAGMENT")
LIBRARY.define("local_attention(Tensor query, Tensor key, Tensor value, int head_dim, int length) -> Tensor")
attend_locally = torch.ops.stretto.local_attention  # the arguments of `local_attention_on_device`
MIN_TOKENS = 16  # of a product in Triton's language


def local_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, head_dim: int, length: int
) -> torch.Tensor:
    """Return the attention [T, heads * head_dim] among `length` consecutive tokens each, in both directions.

    Args:
        query: Queries, [T, heads * head_dim].
        key: Keys, [T, kv_heads * head_dim].
        length: Number of tokens of a row, of which T is a multiple.
    """
    if query.device.type != "cpu" and query.dtype == torch.float32:
        attended_on_device: torch.Tensor = attend_locally(query, key, value, head_dim, length)
        return attended_on_device
    query_heads, key_heads, value_heads = (
        projected.reshape(-1, length, projected.shape[1] // head_dim, head_dim).transpose(1, 2)
        for projected in (query, key, value)
    )
    attended = F.scaled_dot_product_attention(query_heads, key_heads, value_heads, enable_gqa=True)
    return attended.transpose(1, 2).reshape(query.shape)


def local_attention_on_device(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, head_dim: int, length: int
) -> torch.Tensor:
    """Compute `local_attention` in float32 with a kernel. Only `value` may have gaps between its rows."""
    assert query.is_contiguous(), query.stride()
    assert key.is_contiguous(), key.stride()
    assert value.stride(1) == 1, value.stride()
    out = torch.empty_like(query)
    num_heads = query.shape[1] // head_dim
    local_attention_kernel[len(query) // length, num_heads](
        out,
        query,
        key,
        value,
        value.stride(0),
        head_dim**-0.5,
        length,
        num_heads,
        key.shape[1] // head_dim,
        head_dim,
        max(MIN_TOKENS, triton.next_power_of_2(length)),
        triton.next_power_of_2(head_dim),
    )
    return out


def _shaped(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, head_dim: int, length: int) -> torch.Tensor:
    return torch.empty_like(query)


LIBRARY.impl("local_attention", local_attention_on_device, "CUDA")
LIBRARY.impl("local_attention", _shaped, "Meta")


@triton.jit
def local_attention_kernel(
    out: tl.tensor,
    query: tl.tensor,
    key: tl.tensor,
    value: tl.tensor,
    value_stride: tl.tensor,
    scale: tl.tensor,
    length: tl.constexpr,
    num_heads: tl.constexpr,
    num_kv_heads: tl.constexpr,
    head_dim: tl.constexpr,
    block_tokens: tl.constexpr,
    block_dims: tl.constexpr,
) -> None:
    """Compute the attention of one row in one head."""
    head = tl.program_id(1)
    kv_head = head // (num_heads // num_kv_heads)
    tokens = tl.arange(0, block_tokens)
    dims = tl.arange(0, block_dims)
    places = (tl.program_id(0) * length + tokens).to(tl.int64)[:, None]
    is_inside = (tokens < length)[:, None] & (dims < head_dim)[None, :]
    columns = (head * head_dim + dims)[None, :]
    kv_columns = (kv_head * head_dim + dims)[None, :]
    queries = tl.load(query + places * num_heads * head_dim + columns, is_inside, 0.0)
    keys = tl.load(key + places * num_kv_heads * head_dim + kv_columns, is_inside, 0.0)
    values = tl.load(value + places * value_stride + kv_columns, is_inside, 0.0)
    scores = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale
    scores = tl.where((tokens < length)[None, :], scores, -float("inf"))
    weights = tl.exp(scores - tl.max(scores, 1)[:, None])
    weights = weights / tl.sum(weights, 1)[:, None]
    attended = tl.dot(weights, values, input_precision="ieee")
    tl.store(out + places * num_heads * head_dim + columns, attended, is_inside)
