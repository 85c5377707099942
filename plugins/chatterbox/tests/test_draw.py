"""Logits that Turbo's sampling keeps on a GPU are those that it keeps on a CPU."""

import pytest
import torch

from stretto_chatterbox.mechanism.draw import truncate, truncate_on_device
from tests.sampling.cases import random_case


@pytest.mark.parametrize("step", [0.0, 0.5], ids=["distinct", "tied"])
def test_truncated_logits_are_those_of_the_cpu(step: float) -> None:
    """Greedy rows, and random rows with and without top-k and top-p."""
    case = random_case(2, (60, 1, 300), step=step, masked=0.1)
    logits = case.logits[:, 0]
    expected, given = truncate(logits, case.params), logits.clone()
    assert torch.equal(truncate_on_device(logits, case.params), expected)
    assert torch.equal(logits, given)
    is_random = torch.from_numpy(case.temperature > 0)
    assert torch.equal(expected[~is_random], logits[~is_random])
    assert not torch.equal(expected[is_random], logits[is_random])
