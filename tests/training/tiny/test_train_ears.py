"""Training of the codec's encoder for recordings."""

import itertools
from collections.abc import Iterator
from copy import deepcopy

import numpy as np
import torch

from stretto.codecs.tiny.codec import HOP, HOPS, NUM_MELS, TinyCodec
from tests.codecs.conftest import SMALL
from training.tiny.train_ears import SEGMENT_HOPS, examples, train


def utterances() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield noise, and the same noise without its fast changes."""
    rng = np.random.default_rng(0)
    while True:
        clean = rng.uniform(-0.5, 0.5, HOP * HOPS * int(rng.integers(5, 40))).astype(np.float32)
        yield clean, np.convolve(clean, np.full(8, 1 / 8), "same").astype(np.float32)


def test_encoder_learns_the_vectors_of_unaltered_recordings() -> None:
    torch.manual_seed(0)
    encoder = TinyCodec(SMALL).encoder
    teacher = deepcopy(encoder).requires_grad_(False)
    batch = next(examples(teacher, utterances(), 2))
    assert batch[0].shape == (2, SEGMENT_HOPS, NUM_MELS)
    assert batch[1].shape == (2, SEGMENT_HOPS // HOPS, SMALL.latent)
    losses = list(train(encoder, itertools.repeat(batch), 60))
    assert losses[-1] < 0.5 * losses[0]
    assert not any(torch.equal(a, b) for a, b in zip(encoder.parameters(), teacher.parameters(), strict=True))
