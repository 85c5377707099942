"""Temperature, top-k and top-p against a plain loop over every row, stream and token."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from stretto.engine.sampling.draw import draw
from stretto.engine.sampling.parameters import DrawParams, DrawPlan
from tests.sampling.cases import Case, cases, random_case


def drawn(case: Case) -> torch.Tensor:
    return draw(case.logits, case.token_ids, case.keys, case.params, case.plan)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(cases())
def test_sampled_tokens_match_the_plain_loop(case: Case) -> None:
    case.check(drawn(case))


@pytest.mark.parametrize("columns", [300, 1025])
def test_sampled_tokens_of_wide_rows_match_the_plain_loop(columns: int) -> None:
    for seed in range(4):
        case = random_case(seed, (8, 2, columns), step=[0.0, 0.1][seed // 2])
        case.check(drawn(case))


@settings(max_examples=60, deadline=None)
@given(cases())
def test_seeded_row_is_independent_of_other_rows(case: Case) -> None:
    together = drawn(case)
    for row in range(len(case.seeds)):
        assert torch.equal(drawn(case.row(row))[0], together[row])


def test_draw_without_streams_is_empty() -> None:
    """This is the case for later streams in a family with one stream."""
    case = random_case(0, (3, 0, 0), step=0.0)
    assert drawn(case).shape == (3, 0)


@pytest.mark.slow
def test_wide_top_p_nucleus_is_sampled_exactly() -> None:
    case = random_case(0, (4, 1, 20_000))
    case.logits.mul_(torch.tensor([0.01, 0.2, 1.0, 3.0])[:, None, None])
    case.temperature[:], case.top_k[:], case.top_p[:] = 1, 0, 0.9
    case.check(drawn(case))


@pytest.mark.slow
def test_many_improbable_tokens_are_sampled_correctly() -> None:
    case = random_case(0, (8, 1, 20_000))
    case.logits[:] = -7.0
    case.logits[:, :, 5] = 1.0
    case.temperature[:], case.top_k[:], case.top_p[:] = 0.8, 0, 1
    tokens = drawn(case)
    case.check(tokens)
    assert (tokens != case.token_ids[0, 5]).any()


def one_row(
    logits: list[float], temperature: float, top_k: int, top_p: float, num_draws: int = 300, of_all: bool = False
) -> list[int]:
    """Return the columns drawn from a single distribution at many positions."""
    values = torch.tensor(logits).expand(num_draws, 1, -1).contiguous()
    parameters = (np.full(num_draws, value) for value in (np.float32(temperature), top_k, np.float32(top_p)))
    case = Case(values, [1] * num_draws, list(range(num_draws)), *parameters, of_all=of_all)
    return (drawn(case).squeeze(1) - case.token_ids[0, 0]).tolist()


def test_ties_at_the_top_k_boundary_are_kept() -> None:
    assert set(one_row([2.0, 3.0, 2.0, 1.0, 2.0], 1.0, 2, 1.0)) == {0, 1, 2, 4}


def test_top_p_keeps_or_drops_equal_logits_together() -> None:
    assert set(one_row([0.0, 0.0, 0.0, -3.0], 1.0, 0, 0.05)) == {0, 1, 2}


def test_top_p_applies_to_the_mass_kept_by_top_k() -> None:
    logits = np.log([0.3, 0.3001, 0.2, 0.2]).tolist()  # of the first two, the larger holds just over a half
    assert set(one_row(logits, 1.0, 2, 0.5)) == {1}
    assert set(one_row(logits, 1.0, 0, 0.5)) == {0, 1}


def test_top_p_applies_to_all_mass_if_the_family_says_so() -> None:
    logits = np.log([0.3, 0.3001, 0.2, 0.2]).tolist()  # of all four, the larger holds less than a half
    assert set(one_row(logits, 1.0, 2, 0.5, of_all=True)) == {0, 1}
    assert set(one_row(logits, 1.0, 1, 0.5, of_all=True)) == {1}
    assert set(one_row(logits, 1.0, 3, 0.9, of_all=True)) == {0, 1, 2, 3}  # ties at the boundary of top-k
    assert set(one_row(logits, 1.0, 0, 0.5, of_all=True)) == {0, 1}


def test_greedy_sampling_takes_the_lowest_of_equal_logits() -> None:
    assert set(one_row([1.0, 5.0, 5.0], 0.0, 0, 1.0)) == {1}
    case = random_case(3, (2, 2, 200), step=3.0)
    case.temperature[:] = [0, 1]
    assert torch.equal(drawn(case)[0] - case.token_ids[:, 0], case.logits[0].argmax(-1))


@pytest.mark.slow
def test_sampling_frequencies_match_the_tempered_softmax() -> None:
    logits = [0.0, 1.0, 2.0, -1.0]
    counts = np.bincount(one_row(logits, 0.7, 0, 1.0, 20_000), minlength=4) / 20_000
    assert np.allclose(counts, torch.tensor(logits).div(0.7).softmax(0), atol=0.015)


def test_row_with_all_tokens_masked_does_not_affect_others() -> None:
    case = random_case(5, (3, 1, 90))
    case.logits[1] = -torch.inf
    for temperature in (0.0, 1.0):
        for top_k, top_p in ((0, 1.0), (5, 1.0), (5, 0.8), (0, 0.8)):
            case.temperature[:], case.top_k[:], case.top_p[:] = temperature, top_k, top_p
            tokens = drawn(case)
            assert torch.equal(tokens[0], drawn(case.row(0))[0])
            assert torch.equal(tokens[2], drawn(case.row(2))[0])


def test_draw_plan_skips_steps_that_no_row_needs() -> None:
    def plan(temperature: list[float], top_p: list[float]) -> DrawPlan:
        return DrawPlan.from_parameters(np.float32(temperature), np.float32(top_p))

    assert plan([0, 0], [0.5, 1]) == DrawPlan(False, False)
    assert plan([1, 0], [1, 0.5]) == DrawPlan(True, False)
    assert plan([1, 1], [1, 0.5]) == DrawPlan(True, True)


def test_single_stream_params_apply_to_all_streams_of_a_row() -> None:
    case = random_case(9, (1, 3, 60))
    params = DrawParams(torch.tensor([0.0]), torch.tensor([0]), torch.tensor([1.0]))
    tokens = draw(case.logits, case.token_ids, case.keys, params, DrawPlan(True, False))
    assert torch.equal(tokens[0] - case.token_ids[:, 0], case.logits[0].argmax(-1))
