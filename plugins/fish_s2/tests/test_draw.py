"""Ids that Fish Audio S2's sampling keeps: those of a loop, for rows with different options in one batch."""

import pytest
import torch

from stretto_fish_s2.mechanism.draw import kept

# Top-k and top-p of each row; 0 and 1 are off.
OPTIONS = ((30, 0.9), (3, 0.9), (0, 0.5), (0, 1.0), (5, 1.0), (1, 0.9), (500, 1e-6))


def kept_by_loop(logits: list[float], top_k: int, top_p: float) -> set[int]:
    """Return the columns that are kept."""
    probabilities = torch.tensor(logits, dtype=torch.float64).softmax(-1).tolist()
    found, total = set[int](), 0.0
    for rank, column in enumerate(sorted(range(len(logits)), key=lambda at: -logits[at])):
        total += probabilities[column]
        if rank == 0 or ((not top_k or rank < top_k) and (top_p >= 1 or total <= top_p)):
            found.add(column)
    return found


@pytest.mark.parametrize("options", [OPTIONS, OPTIONS[:2], OPTIONS[3:4]], ids=["all", "with top-k", "off"])
def test_kept_ids_equal_a_loop(options: tuple[tuple[int, float], ...]) -> None:
    logits = 3 * torch.randn(len(options), 2, 100, generator=torch.Generator().manual_seed(3))
    logits[:, :, 90:] = -torch.inf  # forbidden
    top_k, top_p = torch.tensor([top_k for top_k, _ in options]), torch.tensor([top_p for _, top_p in options])
    found = kept(logits, top_k, top_p)
    for row, (count, mass) in enumerate(options):
        for stream in range(2):
            columns = {*found[row, stream].isfinite().nonzero()[:, 0].tolist()}
            expected = kept_by_loop(logits[row, stream].tolist(), count, mass)
            assert columns == expected - {*range(90, 100)}
            assert torch.equal(found[row, stream, [*columns]], logits[row, stream, [*columns]])
