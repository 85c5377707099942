"""Training of the codec's encoder for recordings."""

import itertools
from collections.abc import Iterator
from copy import deepcopy

import numpy as np
import torch

from stretto.codecs.tiny.codec import HOP, HOPS, NUM_MELS, TinyCodec, log_mel
from tests.codecs.conftest import SMALL
from training.tiny.train_ears import SEGMENT_HOPS, TIMES, alterations, examples, levelled, repeated, train


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


def test_segments_are_the_utterances_in_a_row() -> None:
    encoder = TinyCodec(SMALL).encoder.requires_grad_(False)
    wanted = np.concatenate([clean for clean, _ in itertools.islice(utterances(), 60)])
    batches = examples(encoder, ((clean, clean) for clean, _ in utterances()), 1)
    size = SEGMENT_HOPS * HOP
    for index in range(3):
        mel, vectors = next(batches)
        torch.testing.assert_close(mel, log_mel(torch.from_numpy(wanted[index * size : (index + 1) * size])[None]))
        torch.testing.assert_close(vectors, encoder(mel))


def test_batches_are_repeated() -> None:
    batches = ((torch.tensor(index), torch.tensor(index)) for index in itertools.count())
    seen = [int(mel) for mel, _ in itertools.islice(repeated(batches, np.random.default_rng(0)), 40 * TIMES)]
    assert seen[:TIMES] == [0] * TIMES
    assert seen[::TIMES] == list(range(40))
    assert all(value <= index // TIMES for index, value in enumerate(seen))


def test_recordings_are_altered_in_all_ways_and_levelled() -> None:
    rng = np.random.default_rng(0)
    counts = [len(alterations(rng)) for _ in range(200)]
    assert {0, 1, 2, 3} <= set(counts)
    pcm = rng.uniform(-0.01, 0.01, 2400).astype(np.float32)
    for alter in itertools.chain.from_iterable(alterations(rng) for _ in range(12)):
        assert len(alter(pcm)) == len(pcm)
    np.testing.assert_allclose(levelled(pcm), levelled(pcm * 7), rtol=1e-5)
