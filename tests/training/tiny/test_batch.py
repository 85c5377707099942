"""Losses over padded batches."""

import numpy as np
import pytest
import torch

from stretto.families.tiny import family as tiny
from training.tiny import builders
from training.tiny.batch import Losses, losses
from training.tiny.corpus import Corpus, pack
from training.tiny.encoded import Spoken, Transcript
from training.tiny.network import Network, NetworkConfig

SMALL = NetworkConfig(hidden_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
                      intermediate_size=96)  # fmt: skip
PHONEMES = tuple(tiny.PHONEMES.index(name) for name in "pau ah1 p ae t pau".split())


def corpus(*frames: int) -> Corpus:
    transcript = Transcript("up at", PHONEMES, (-1, 0, 0, 1, 1, -1))
    rows = [builders.tts(Spoken(transcript, "heart", np.minimum(np.arange(count), 5))) for count in frames]
    codes = [np.random.RandomState(count).randint(0, 256, (count, 7)).astype(np.uint8) for count in frames]
    return Corpus([pack(rows)], torch.from_numpy(np.concatenate(codes)), True, "cpu")


def measure(*frames: int) -> Losses:
    torch.manual_seed(0)
    batch = corpus(*frames).batch(np.arange(len(frames)))
    return losses(Network(SMALL), batch, guide=0.3, text_weight=0.5)


def test_padding_does_not_change_the_loss() -> None:
    alone, together = [measure(8), measure(60)], measure(8, 60)
    for kind, (total, count) in together.sums.items():
        assert count == sum(each.sums[kind][1] for each in alone)
        assert float(total) == pytest.approx(sum(float(each.sums[kind][0]) for each in alone), rel=0.02), kind
