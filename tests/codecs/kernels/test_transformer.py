"""Transformer and codebooks of a codec on a GPU, in Triton's interpreter: values, and one order of sums."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stretto.codecs.device import Ending, Rotation, joined_weight, joint_codebooks, multiply
from stretto.codecs.kernels.sizes import GATE
from stretto.codecs.qwen3_12hz.decoder import rotated as rotated_halves
from stretto.codecs.rotary_attention import rotated as rotated_pairs
from stretto.testing.fake_gpu import kernels_on_host

HEADS = 4
KV_HEADS = 2
WIDTH = 4
BEFORE = 37  # steps, more than a block of keys


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def attended(x: Tensor, first: Tensor, sizes: list[int]) -> tuple[Tensor, Tensor]:
    """Return the outputs of windows of these sizes, and the last state."""
    state = torch.zeros(len(x), BEFORE * 2 * KV_HEADS * WIDTH)
    parts = list[Tensor]()
    begin = 0
    for window in x.split(sizes, 1):
        after = torch.empty_like(state)
        arguments = window.contiguous(), state, after, first + begin, None
        parts.append(torch.ops.stretto.attend(*arguments, BEFORE, HEADS, KV_HEADS))
        state = after
        begin += window.shape[1]
    return torch.cat(parts, 1), state


def test_attention_has_the_same_bits_in_any_window_and_batch() -> None:
    """Windows that begin in the middle of a block, at two positions, with a state that they do not fill."""
    x = numbers(2, 60, (HEADS + 2 * KV_HEADS) * WIDTH)
    first = torch.zeros(2, dtype=torch.int64)
    query, key, value = x.unflatten(2, (-1, WIDTH)).transpose(1, 2).split([HEADS, KV_HEADS, KV_HEADS], 1)
    distance = torch.arange(60)[:, None] - torch.arange(60)
    is_seen = (distance >= 0) & (distance <= BEFORE)
    expected = F.scaled_dot_product_attention(query, key, value, is_seen, enable_gqa=True).transpose(1, 2).flatten(2)
    with kernels_on_host():
        whole, state = attended(x, first, [60])
        parts, last = attended(x[1:], first[1:], [1, 21, 38])
    torch.testing.assert_close(whole, expected, rtol=0, atol=1e-5)
    assert torch.equal(parts, whole[1:])
    assert torch.equal(last, state[1:])
    assert torch.equal(state[0].view(BEFORE, -1), x[0, 60 - BEFORE :, HEADS * WIDTH :])


@pytest.mark.parametrize("is_paired", [False, True])
def test_product_rotates_queries_and_keys(is_paired: bool) -> None:
    """Both kinds of rotary embeddings; values are not rotated."""
    x = numbers(2, 3, 8)
    weight = numbers(8 * WIDTH, 8, seed=1)
    first = torch.tensor([0, 1000])
    frequencies = torch.tensor([1.0, 0.01])
    angles = (first[:, None] + torch.arange(3)).float()[..., None] * frequencies
    with kernels_on_host():
        cosines, sines = torch.ops.stretto.rotation(first, frequencies, 3)
        rotation = Rotation(cosines, sines, 6 * WIDTH, is_paired)
        result = multiply(x, weight, ending=Ending(activation=rotation)).unflatten(2, (-1, WIDTH))
    torch.testing.assert_close(cosines, angles.cos(), rtol=0, atol=1e-6)
    torch.testing.assert_close(sines, angles.sin(), rtol=0, atol=1e-6)
    plain = (x @ weight.T).unflatten(2, (-1, WIDTH))
    if is_paired:
        turned = rotated_pairs(plain[:, :, :6], torch.stack([angles.cos(), angles.sin()], -1)[:, :, None])
    else:
        twice = angles.repeat(1, 1, 2)[:, :, None]
        turned = rotated_halves(plain[:, :, :6], (twice.cos(), twice.sin()))
    torch.testing.assert_close(result, torch.cat([turned, plain[:, :, 6:]], 2), rtol=0, atol=1e-5)


def test_gated_product_of_alternating_rows() -> None:
    """The joint weight becomes the memory of both layers."""
    layers = [nn.Linear(8, 20, bias=False).requires_grad_(False) for _ in range(2)]
    x = numbers(2, 3, 8)
    expected = F.silu(layers[0](x)) * layers[1](x)
    with kernels_on_host():
        weight = joined_weight(layers, is_interleaved=True)
        result = multiply(x, weight, ending=Ending(activation=GATE))
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)
    assert torch.equal(F.silu(layers[0](x)) * layers[1](x), expected)
    assert layers[1].weight.untyped_storage().data_ptr() == weight.untyped_storage().data_ptr()


def test_projected_codebooks_are_one_table_and_one_product() -> None:
    """Codebooks of different sizes, of which only the first ones may be used."""
    tables = [numbers(size, 5, seed=seed) for seed, size in enumerate((6, 4, 4))]
    projections = [nn.Linear(5, 20).requires_grad_(False) for _ in tables]
    codes = torch.tensor([[[5, 0], [1, 3], [9, 2]]])
    with kernels_on_host():
        joint = joint_codebooks(tables, projections)
        for number in (1, 2, 3):
            result = joint.sum_of(codes[:, :number], 3)
            expected = torch.zeros(1, 2, 20)
            for table, projection, book in zip(tables, projections, codes[0, :number], strict=False):
                expected += projection(table[book.clamp(max=len(table) - 1)])
            torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("num_first", "num_others"), [(1, 3), (4, 1), (1, 1)])
def test_sums_of_entries_match_a_loop(num_first: int, num_others: int) -> None:
    """Codebooks are added in their order; a code above the last one of later groups counts as the last one."""
    entries = numbers(4, 6, 5)
    codes = torch.randint(6, (2, 4, 3), generator=torch.Generator().manual_seed(1))
    with kernels_on_host():
        result = torch.ops.stretto.sum_entries(codes, entries, num_first, num_others, 4, 0.5)
    bounds = [0, *range(num_first, 5, num_others)]
    for batch in range(2):
        for step in range(3):
            sums = list[Tensor]()
            for group, (begin, end) in enumerate(pairwise(bounds)):
                total = torch.zeros(5)
                for book in range(begin, end):
                    code = int(codes[batch, book, step])
                    total = total + entries[book, code if group == 0 else min(code, 4)]
                sums.append(0.5 * total)
            assert torch.equal(result[batch, step], torch.cat(sums))
