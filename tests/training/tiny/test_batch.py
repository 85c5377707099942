"""Losses over padded batches."""

import numpy as np
import pytest
import torch

from training.tiny import builders
from training.tiny.batch import Losses, collate, losses
from training.tiny.encoded import Spoken, Transcript
from training.tiny.network import Network, NetworkConfig

SMALL = NetworkConfig(hidden_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
                      intermediate_size=96)  # fmt: skip


def utterance(frames: int) -> Spoken:
    transcript = Transcript("up at", (30, 2, 29, 1, 33, 30), (-1, 0, 0, 1, 1, -1))
    codes = np.random.RandomState(frames).randint(0, 256, (frames, 7)).astype(np.uint8)
    return Spoken(transcript, "slt", np.minimum(np.arange(frames), 5), codes)


def measure(spoken: list[Spoken]) -> Losses:
    torch.manual_seed(0)
    return losses(Network(SMALL), collate([builders.tts(each) for each in spoken]), guide=0.3, text_weight=0.5)


def test_padding_does_not_change_the_loss() -> None:
    alone, together = [measure([utterance(8)]), measure([utterance(30)])], measure([utterance(8), utterance(30)])
    for kind, (total, count) in together.sums.items():
        assert count == sum(each.sums[kind][1] for each in alone)
        assert total == pytest.approx(sum(each.sums[kind][0] for each in alone), rel=0.02), kind


def test_loss_terms_are_counted_per_predicted_token() -> None:
    sums = measure([utterance(8)]).sums
    assert sums["text"][1] == 8
    assert sums["frame"][1] == 9
    assert {sums[f"code{k}"][1] for k in range(7)} == {8}


def test_every_used_weight_has_a_gradient() -> None:
    torch.manual_seed(0)
    network = Network(SMALL)
    losses(network, collate([builders.tts(utterance(8))]), guide=0.3, text_weight=0.5).total.backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in network.parameters())
