"""Logits after top-k and top-p truncation."""

import torch

from stretto.engine.sampling.draw import draw
from stretto.engine.sampling.parameters import DrawParams, DrawPlan
from stretto_chatterbox.mechanism.draw import truncate
from tests.sampling.cases import random_case


def test_plain_draw_from_truncated_logits_equals_the_full_draw() -> None:
    """This also holds with ties. Rows of temperature 0 keep all logits."""
    num_dropped = 0
    for seed in range(12):
        case = random_case(seed, (8, 1, 300), step=[0.0, 0.25][seed % 2])
        logits, params = case.logits[:, 0], case.params
        kept = truncate(logits, params)
        is_kept = kept.isfinite()
        assert torch.equal(kept[is_kept], logits[is_kept])
        is_random = params.temperature > 0
        assert torch.equal(kept[~is_random], logits[~is_random])
        plain = DrawParams(params.temperature, torch.zeros_like(params.top_k), torch.ones_like(params.top_p))
        plan = DrawPlan(bool(is_random.any()), False)
        drawn = draw(kept[:, None], case.token_ids, case.keys, plain, plan)
        assert torch.equal(drawn, draw(case.logits, case.token_ids, case.keys, params, case.plan))
        num_dropped += int((logits.isfinite() & ~is_kept).sum())
    assert num_dropped > 0
