"""Min-p computed from a span of logits equals min-p computed from probabilities."""

import math

import pytest
import torch

from stretto.engine.kernels.logit_options import LOGIT_OPTIONS, keep_near
from stretto.records.sampling import NUMBER_OPTIONS, SamplingConfig, SegmentSampling, logit_span


def min_p_span(min_p: float, temperature: float) -> float:
    segment = SegmentSampling(temperature)
    return logit_span(SamplingConfig(segment, segment, min_p=min_p))


@pytest.mark.parametrize("temperature", [0.3, 0.8, 2.0])
@pytest.mark.parametrize("min_p", [0.01, 0.05, 0.5, 1.0])
def test_min_p_keeps_exactly_the_probable_tokens(min_p: float, temperature: float) -> None:
    logits = torch.randn(20, 300, generator=torch.Generator().manual_seed(0)) * 3
    logits[:, 7] = -torch.inf
    probabilities = (logits.double() / temperature).softmax(1)
    expected = probabilities >= min_p * probabilities.amax(1, keepdim=True) * (1 - 1e-9)
    kept = keep_near(logits, torch.full((20,), min_p_span(min_p, temperature))) > -torch.inf
    assert torch.equal(kept, expected)


def test_families_that_compute_stream_0_refuse_exactly_these_options() -> None:
    assert {name for name, option in NUMBER_OPTIONS.items() if option.is_for_first} == LOGIT_OPTIONS.keys()


def test_min_p_is_off_by_default_and_for_greedy_rows() -> None:
    """Greedy rows choose the most probable token anyway."""
    assert min_p_span(0.0, 1.0) == min_p_span(0.5, 0.0) == math.inf
    logits = torch.randn(2, 50)
    kept = keep_near(logits, torch.tensor([math.inf, min_p_span(1.0, 1.0)]))
    assert torch.equal(kept[0], logits[0])
    assert int((kept[1] > -torch.inf).sum()) == 1
