"""Min-p computed from a span of logits equals min-p computed from probabilities."""

import math

import pytest
import torch

from stretto.sampling import keep_near, min_p_span


@pytest.mark.parametrize("temperature", [0.3, 0.8, 2.0])
@pytest.mark.parametrize("min_p", [0.01, 0.05, 0.5, 1.0])
def test_what_is_kept_is_as_probable_as_asked_for(min_p: float, temperature: float) -> None:
    logits = torch.randn(20, 300, generator=torch.Generator().manual_seed(0)) * 3
    logits[:, 7] = -torch.inf
    probabilities = (logits.double() / temperature).softmax(1)
    expected = probabilities >= min_p * probabilities.amax(1, keepdim=True) * (1 - 1e-9)
    kept = keep_near(logits, torch.full((20,), min_p_span(min_p, temperature))) > -torch.inf
    assert torch.equal(kept, expected)


def test_rows_that_do_not_ask_for_it_keep_all() -> None:
    """Greedy rows choose the most probable token anyway."""
    assert min_p_span(0.0, 1.0) == min_p_span(0.5, 0.0) == math.inf
    logits = torch.randn(2, 50)
    kept = keep_near(logits, torch.tensor([math.inf, min_p_span(1.0, 1.0)]))
    assert torch.equal(kept[0], logits[0])
    assert int((kept[1] > -torch.inf).sum()) == 1
