"""The interpreted draw kernel against the plain loop that also checks the CPU draw."""

import pytest
import torch
from hypothesis import given, settings

from stretto.engine.kernels.draw import draw
from stretto.engine.kernels.gpu import draw as kernel
from stretto.engine.kernels.gpu.draw import draw_on_device
from tests.sampling.cases import Case, cases, random_case

pytestmark = pytest.mark.slow


def drawn(case: Case) -> torch.Tensor:
    return draw_on_device(case.logits, case.token_ids, case.keys, case.params)


@settings(max_examples=15, deadline=None)
@given(cases(max_rows=3, max_columns=90))
def test_sampled_tokens_match_the_plain_loop(case: Case) -> None:
    case.check(drawn(case))


@pytest.mark.parametrize("step", [0.0, 0.5])
def test_multi_block_draws_match_the_plain_loop(step: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "MAX_BLOCK", 128)
    case = random_case(7, (4, 2, 300), step=step, masked=0.1)
    case.check(drawn(case))


def test_greedy_sampling_across_blocks_takes_the_lowest_equal_logit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "MAX_BLOCK", 128)
    case = random_case(1, (3, 2, 400), step=3.0)
    case.temperature[:] = 0
    assert torch.equal(drawn(case) - case.token_ids[:, 0], case.logits.argmax(-1))


def test_positive_and_negative_zero_logits_are_equal() -> None:
    case = random_case(2, (10, 1, 3))
    case.logits[:] = torch.tensor([-0.0, 0.0, -9.0])
    case.temperature[:], case.top_k[:], case.top_p[:] = 1, [1, 0] * 5, [1.0, 0.4] * 5
    tokens = drawn(case)
    for half in (tokens[::2], tokens[1::2]):
        assert set((half - case.token_ids[0, 0]).flatten().tolist()) == {0, 1}
    case.check(tokens)


def test_row_with_all_tokens_masked_does_not_affect_others() -> None:
    case = random_case(5, (3, 1, 40))
    case.logits[1] = -torch.inf
    case.temperature[:], case.top_k[:], case.top_p[:] = 1, 5, 0.8
    tokens = drawn(case)
    for row in (0, 2):
        assert torch.equal(tokens[row], drawn(case.row(row))[0])


def test_cpu_draw_matches_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(kernel, "draw_on_device")
    case = random_case(3, (2, 2, 50))
    case.check(draw(case.logits, case.token_ids, case.keys, case.params, case.plan))
