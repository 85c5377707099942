"""The alignment pointer advances with probability 1 - P(stay), at a temperature."""

import torch

from stretto.families.tiny.mechanism.draw import advances


def test_zero_temperature_takes_the_likelier_option() -> None:
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.5, 0.0, 0.0]])
    stay = torch.tensor([0, 0])  # P(stay) = 0.79 and 0.45
    noise = torch.full((2,), 0.5)
    assert advances(logits, stay, torch.zeros(2), noise).tolist() == [False, True]


def test_advance_frequency_matches_the_tempered_probability() -> None:
    noise = (torch.arange(10_000) + 0.5) / 10_000
    logits = torch.tensor([[1.0, -0.5, 0.2, -1.0]]).expand(10_000, -1)
    stay = torch.zeros(10_000, dtype=torch.int64)
    p_stay = logits[0].softmax(0)[0].item()
    for temperature in (1.0, 0.6, 2.0):
        frequency = advances(logits, stay, torch.full((10_000,), temperature), noise).float().mean().item()
        odds = ((1 - p_stay) / p_stay) ** (1 / temperature)
        assert abs(frequency - odds / (1 + odds)) < 1e-3


def test_certain_alignment_advances_ignore_the_noise() -> None:
    logits = torch.tensor([[200.0, 0.0], [0.0, 200.0]])
    stay = torch.tensor([0, 0])
    for noise in (1e-7, 1 - 1e-7):
        assert advances(logits, stay, torch.ones(2), torch.full((2,), noise)).tolist() == [False, True]


def test_advances_do_not_depend_on_the_batch() -> None:
    """The noise is as near to each probability as float32 has numbers."""
    num_rows = 500
    logits = 3 * torch.randn(num_rows, 5, generator=torch.Generator().manual_seed(0))
    stay = torch.zeros(num_rows, dtype=torch.int64)
    temperature = torch.ones(num_rows)
    probability = 1 - logits.double().softmax(-1)[:, 0].float()
    for distance in range(-4, 5):
        noise = probability + distance * torch.finfo(torch.float32).eps / 2
        alone = [
            advances(*row) for row in zip(*(each.split(1) for each in (logits, stay, temperature, noise)), strict=True)
        ]
        assert advances(logits, stay, temperature, noise).equal(torch.cat(alone))
