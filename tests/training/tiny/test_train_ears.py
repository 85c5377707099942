"""Training of the codec's encoder for recordings."""

import inspect
import itertools
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch

from stretto.codecs.tiny.codec import HOP, HOPS, NUM_MELS, WEIGHTS_FILE, TinyCodec, log_mel
from tests.codecs.conftest import SMALL
from training.tiny.alterations import Alteration
from training.tiny.export_codec import write_weights
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


def kind(alter: Alteration) -> tuple[str, object]:
    """Return the function that made the alteration, and its codec if it has one."""
    return alter.__qualname__.partition(".")[0], inspect.getclosurevars(alter).nonlocals.get("codec")


def test_recordings_are_altered_in_all_ways_and_levelled() -> None:
    rng = np.random.default_rng(0)
    drawn = [alterations(rng) for _ in range(200)]
    assert {kind(alter) for each in drawn for alter in each} == {
        *((name, None) for name in ("noisy", "louder", "resampled", "without_bass")),
        *(("coded", codec) for codec in ("pcm_mulaw", "mp3", "libopus")),
    }
    assert [] in drawn
    pcm = rng.uniform(-0.01, 0.01, 2400).astype(np.float32)
    for alter in itertools.chain.from_iterable(drawn[:12]):
        assert len(alter(pcm)) == len(pcm)
    np.testing.assert_allclose(levelled(pcm), levelled(pcm * 7), rtol=1e-5)


def test_weights_are_written_into_a_new_folder(tmp_path: Path) -> None:
    write_weights(tmp_path / "new" / "out", TinyCodec(SMALL).state_dict())
    assert (tmp_path / "new" / "out" / WEIGHTS_FILE).exists()
