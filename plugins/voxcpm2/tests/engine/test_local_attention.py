"""Attention among the few tokens of a row on a GPU, in Triton's interpreter, against torch's on a CPU."""

import pytest
import torch

from stretto_voxcpm2.mechanism.attention import local_attention, local_attention_on_device

NUM_ROWS = 3


def operands(length: int, heads: int, kv_heads: int, head_dim: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return queries, keys and values of NUM_ROWS rows; the values are a part of a wider tensor."""
    random = torch.Generator().manual_seed(length)
    tokens, columns = NUM_ROWS * length, kv_heads * head_dim
    query, key, wide = (
        torch.randn(tokens, each, generator=random) for each in (heads * head_dim, columns, columns + 24)
    )
    return query, key, wide[:, 24:]


@pytest.mark.parametrize(
    ("length", "heads", "kv_heads", "head_dim"), [(11, 4, 2, 32), (5, 2, 2, 20), (1, 2, 1, 16), (17, 4, 1, 8)]
)
def test_local_attention_matches_torch(length: int, heads: int, kv_heads: int, head_dim: int) -> None:
    query, key, value = operands(length, heads, kv_heads, head_dim)
    found = local_attention_on_device(query, key, value, head_dim, length)
    torch.testing.assert_close(found, local_attention(query, key, value, head_dim, length), rtol=0, atol=2e-5)


def test_a_row_does_not_depend_on_others() -> None:
    sizes = 11, 4, 2, 32
    query, key, value = operands(*sizes)
    together = local_attention_on_device(query, key, value, 32, 11)
    for row in range(NUM_ROWS):
        mine = slice(11 * row, 11 * (row + 1))
        alone = local_attention_on_device(query[mine], key[mine], value[mine], 32, 11)
        assert torch.equal(alone, together[mine])
        assert not torch.equal(alone, together[: len(alone)]) or row == 0
