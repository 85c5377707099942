"""Cross-attention computed by a loop, by torch, and by the interpreted kernel."""

from collections.abc import Callable

import pytest
import torch

from stretto_kyutai.kyutai_tts.mechanism.cross_attention import attend_on_device, attend_on_host, cross_attend

Attend = Callable[..., torch.Tensor]
NUM_SLOTS, NUM_HEADS = 3, 2
SLOTS = torch.tensor([2, 2, 2, 0, 1, 0, 2, 9, 9], dtype=torch.int32)  # of seven rows; the other entries are unused
NUM_PRESENT = torch.tensor([5, 0, 21, 0], dtype=torch.int32)


def tables(num_vectors: int, head_dim: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    """Return queries, keys and values; absent vectors are the same in all slots."""
    random = torch.Generator().manual_seed(num_vectors)
    shape = NUM_SLOTS + 1, NUM_HEADS, num_vectors, head_dim
    both = torch.randn(2, *shape, generator=random).to(dtype)
    for slot, present in enumerate(NUM_PRESENT.tolist()):
        both[:, slot, :, present:] = both[:, -1, :, present:]
    return 2 * torch.randn(7, NUM_HEADS * head_dim, generator=random).to(dtype), *both


def slow(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    rows = []
    for row, slot in zip(query.double(), SLOTS.tolist(), strict=False):
        for head, own in enumerate(row.view(NUM_HEADS, -1)):
            scores = [float(own @ key) / len(own) ** 0.5 for key in keys[slot, head].double()]
            weights = torch.tensor(scores).double().softmax(0)
            rows.append(sum(weight * value for weight, value in zip(weights, values[slot, head].double(), strict=True)))
    return torch.stack(rows).view(len(query), -1)


@pytest.mark.parametrize("attend", [attend_on_host, attend_on_device, cross_attend])
@pytest.mark.parametrize(("num_vectors", "head_dim"), [(21, 32), (64, 32), (300, 12), (1, 128)])
def test_attention_matches_a_slow_loop(attend: Attend, num_vectors: int, head_dim: int) -> None:
    """Blocks of the kernel have up to 256 vectors. The last is not full, and one has present and absent vectors."""
    given = tables(num_vectors, head_dim)
    found = attend(*given, SLOTS, NUM_PRESENT)
    torch.testing.assert_close(found.double(), slow(*given), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attend", [attend_on_host, attend_on_device])
def test_half_precision_is_rounded_at_the_end(attend: Attend) -> None:
    given = tables(40, 32, torch.bfloat16)
    found = attend(*given, SLOTS, NUM_PRESENT)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), slow(*given), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("attend", [attend_on_host, attend_on_device])
def test_attention_of_a_row_does_not_depend_on_other_rows(attend: Attend) -> None:
    query, *both = tables(150, 32)
    together = attend(query, *both, SLOTS, NUM_PRESENT)
    for row in range(len(query)):
        alone = attend(query[row : row + 1], *both, SLOTS[row:], NUM_PRESENT)
        assert torch.equal(alone, together[row : row + 1])


def test_absent_vectors_are_read_from_the_shared_entry() -> None:
    query, keys, values = tables(150, 32)
    expected = attend_on_device(query, keys, values, SLOTS, NUM_PRESENT)
    for slot, present in enumerate(NUM_PRESENT[:-1].tolist()):
        keys[slot, :, present:] = values[slot, :, present:] = torch.nan
    assert torch.equal(attend_on_device(query, keys, values, SLOTS, NUM_PRESENT), expected)


def test_the_operator_is_opaque_to_the_compiler() -> None:
    query, keys, values = tables(21, 32)

    def doubled(query: torch.Tensor) -> torch.Tensor:
        return cross_attend(2 * query, keys, values, SLOTS, NUM_PRESENT) + 1

    traced = torch.compile(doubled, backend="eager", fullgraph=True, dynamic=True)
    assert torch.equal(traced(query), doubled(query))
    assert torch.equal(traced(query[:3]), doubled(query[:3]))
