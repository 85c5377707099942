"""Attention to the texts of requests equals a slow loop, on both devices, and a row does not depend on others."""

import math
from collections.abc import Callable

import pytest
import torch

from stretto_magpie.mechanism.text_attention import attend_on_device, attend_on_host

NUM_SLOTS = 3
NUM_HEADS = 2
NUM_TOKENS = 11
HEAD_DIM = 8
SIZES = (9, 0, 11)
# Slot of each row, and position of the text around which its prior lies; NUM_TOKENS for none.
ROWS = ((0, NUM_TOKENS), (0, 0), (0, 4), (0, 8), (1, 2), (2, 10), (2, 1))
EPSILON = 0.1
WINDOW = 3
Attend = Callable[..., torch.Tensor]


def tables() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    keys, values = torch.randn(2, NUM_SLOTS + 1, NUM_HEADS, NUM_TOKENS, HEAD_DIM, generator=generator)
    return keys, values


def attended(
    attend: Attend, rows: tuple[tuple[int, int], ...], queries: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the output of rows, [N, Q * D], and the attention that they add to the table."""
    read = torch.zeros(NUM_SLOTS + 1, NUM_TOKENS)
    slots, positions = torch.tensor(rows, dtype=torch.int32).T
    sizes = torch.tensor((*SIZES, 0), dtype=torch.int32)
    return attend(queries, *tables(), slots, sizes, positions, read, EPSILON, WINDOW), read[:NUM_SLOTS]


@pytest.mark.parametrize("attend", [attend_on_host, attend_on_device])
def test_attention_equals_a_slow_loop(attend: Attend) -> None:
    queries = torch.randn(len(ROWS), NUM_HEADS * HEAD_DIM, generator=torch.Generator().manual_seed(8))
    output, read = attended(attend, ROWS, queries)
    keys, values = tables()
    newest = dict[int, torch.Tensor]()
    for row, (slot, position) in enumerate(ROWS):
        size = SIZES[slot]
        weights = torch.zeros(NUM_HEADS, NUM_TOKENS)
        for head, query in enumerate(queries[row].view(NUM_HEADS, HEAD_DIM)):
            for token in range(size):
                weights[head, token] = math.exp(float(query @ keys[slot, head, token]) / math.sqrt(HEAD_DIM))
                is_far = not (token == max(1, position - 1) or position <= token <= position + WINDOW)
                if position < size and is_far:
                    weights[head, token] *= EPSILON
        weights = weights / weights.sum(1, keepdim=True) if size else weights
        expected = torch.einsum("ht,htd->hd", weights, values[slot]).flatten()
        torch.testing.assert_close(output[row], expected)
        newest[slot] = weights.mean(0)
    torch.testing.assert_close(read, torch.stack([newest[slot] for slot in range(NUM_SLOTS)]))


def test_rows_do_not_depend_on_others() -> None:
    queries = torch.randn(len(ROWS), NUM_HEADS * HEAD_DIM, generator=torch.Generator().manual_seed(9))
    together, _ = attended(attend_on_host, ROWS, queries)
    alone = [attended(attend_on_host, ROWS[row : row + 1], queries[row : row + 1])[0] for row in range(len(ROWS))]
    assert together.equal(torch.cat(alone))
