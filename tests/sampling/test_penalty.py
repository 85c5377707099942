import torch
from transformers import RepetitionPenaltyLogitsProcessor

from stretto.engine.sampling.repetition import penalize


def test_repetition_penalty_is_bit_identical_to_hugging_face() -> None:
    random = torch.Generator().manual_seed(0)
    logits, ids = torch.randn(4, 50, generator=random), torch.randint(0, 50, (4, 30), generator=random)
    is_seen = torch.zeros(4, 50, dtype=torch.bool).scatter_(1, ids, True)
    for penalty in (1.0, 1.05, 1.3, 0.7):
        expected = RepetitionPenaltyLogitsProcessor(penalty)(ids, logits.clone())
        assert torch.equal(penalize(logits, is_seen, torch.full((4,), penalty)), expected)
    assert not torch.equal(expected, logits)


def test_each_row_has_its_own_penalty_and_history() -> None:
    logits = torch.tensor([[2.0, -2.0, 2.0], [2.0, -2.0, 2.0]])
    is_seen = torch.tensor([[True, True, False], [False, False, True]])
    assert penalize(logits, is_seen, torch.tensor([2.0, 4.0])).tolist() == [[1.0, -4.0, 2.0], [2.0, -2.0, 0.5]]
