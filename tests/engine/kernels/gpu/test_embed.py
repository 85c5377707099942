"""Sums of embeddings computed by a loop, by torch, and by the interpreted kernel."""

from collections.abc import Callable

import pytest
import torch

from stretto.engine.kernels.gpu.products import embed_on_device, embed_on_host, embed_rows

PAD, VOCAB = 5, 40
Embed = Callable[[torch.Tensor, torch.Tensor, int, bool], torch.Tensor]


def slow(table: torch.Tensor, ids: torch.Tensor, pad_is_silent: bool) -> torch.Tensor:
    rows = []
    for row in ids.tolist():
        counted = [token for stream, token in enumerate(row) if stream == 0 or token != PAD or not pad_is_silent]
        rows.append(sum((table[token].double() for token in counted), torch.zeros(table.shape[1]).double()))
    return torch.stack(rows)


@pytest.mark.parametrize("embed", [embed_on_host, embed_on_device, embed_rows])
@pytest.mark.parametrize("pad_is_silent", [True, False])
@pytest.mark.parametrize(("num_rows", "num_streams", "width"), [(1, 1, 8), (5, 3, 7), (4, 8, 130), (2, 2, 1500)])
def test_embedded_rows_match_a_slow_loop(
    embed: Embed, pad_is_silent: bool, num_rows: int, num_streams: int, width: int
) -> None:
    random = torch.Generator().manual_seed(width)
    table = torch.randn(VOCAB, width, generator=random)
    ids = torch.randint(0, VOCAB, (num_rows, num_streams), generator=random)
    ids[0], ids[-1, -1] = PAD, PAD
    for id_type in (torch.int64, torch.int32):
        embedded = embed(table, ids.to(id_type), PAD, pad_is_silent)
        torch.testing.assert_close(embedded.double(), slow(table, ids, pad_is_silent), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("embed", [embed_on_host, embed_on_device])
@pytest.mark.parametrize("pad_is_silent", [True, False])
def test_half_precision_sums_are_rounded_once(embed: Embed, pad_is_silent: bool) -> None:
    table = torch.randn(VOCAB, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    ids = torch.randint(0, VOCAB, (6, 8), generator=torch.Generator().manual_seed(1))
    embedded = embed(table, ids, PAD, pad_is_silent)
    assert embedded.dtype == torch.bfloat16
    exact = slow(table, ids, pad_is_silent)
    unit = 1 / 128  # of the last of 8 bits; the interpreter cuts off what a device rounds
    rtol = unit if embed is embed_on_device else unit / 2
    torch.testing.assert_close(embedded.double(), exact, rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("embed", [embed_on_host, embed_on_device])
def test_ids_and_table_may_be_views_of_larger_tensors(embed: Embed) -> None:
    table = torch.randn(VOCAB, 24)
    ids = torch.randint(0, VOCAB, (3, 6))
    expected = slow(table[:, :10], ids[:, ::2], True)
    torch.testing.assert_close(embed(table[:, :10], ids[:, ::2], PAD, True).double(), expected, rtol=1e-5, atol=1e-5)
