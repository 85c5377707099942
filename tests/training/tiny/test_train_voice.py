"""Further training of the codec's decoder, with the codes fixed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from stretto.codecs.tiny.codec import BINS, TinyCodec, Trunk
from tests.codecs.conftest import SMALL
from training.tiny import train_voice
from training.tiny.synthesise import Shard, write_shard
from training.tiny.teacher import Head
from training.tiny.train_voice import WEIGHTS, Examples, VoiceTraining, trunk_values

CONFIG = replace(SMALL, channels=32, codebook_size=256)
LENGTHS = 31, 8, 90, 200  # hops of utterances; the second one is too short


@pytest.fixture
def head(tmp_path: Path) -> Head:
    rng = np.random.default_rng(0)
    weight = rng.normal(0, 0.1, (5 * BINS, 256)).astype(np.float32)
    np.savez(tmp_path / "head.npz", weight=weight, bias=np.zeros(5 * BINS, np.float32))
    return Head(tmp_path, "cpu")


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """Return the path of a shard of noise with a rising pitch."""
    rng, first = np.random.default_rng(0), np.cumsum([0, *LENGTHS])
    hidden = rng.normal(0, 1, (first[-1], 256)).astype(np.float16)
    none = np.zeros(0, np.int64)
    write_shard(
        tmp_path / "shard_0000.npz",
        Shard(
            hidden, np.linspace(20, 300, first[-1]).astype(np.float16), first, none, none, none.astype(float), {}, {}
        ),
    )
    return tmp_path / "shard_0000.npz"


def small_codec() -> TinyCodec:
    torch.manual_seed(0)
    codec = TinyCodec(CONFIG).requires_grad_(False)
    codec.quantiser.codebooks.normal_(0, 1)
    return codec


def test_sums_of_shifted_products_are_the_trunks_convolutions() -> None:
    torch.manual_seed(0)
    trunk = Trunk(8, 16, 5, 3).double()
    frames = torch.randn(2, 20, 8, dtype=torch.float64)
    expected, _ = trunk(frames, torch.zeros(2, trunk.state_size, dtype=torch.float64))
    torch.testing.assert_close(trunk_values(trunk, frames), expected, rtol=0, atol=1e-12)


def test_training_lowers_the_distances_and_changes_only_the_trunk(
    head: Head, shard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_voice, "PEAK_RATE", 2e-3)
    monkeypatch.setattr(train_voice, "WARM_UP", 1)
    codec = small_codec()
    before = {name: weight.clone() for name, weight in codec.state_dict().items()}
    examples = Examples(shard.parent, small_codec(), [codec.encoder], head, seed=0)
    examples.grow(10)
    batch = examples.draw(2)
    training = VoiceTraining(codec, head, tmp_path, seconds=1000)
    found = [training.one_step(*batch) for _ in range(12)]
    first, last = (sum(WEIGHTS[name] * distance for name, distance in found[step].items()) for step in (0, -1))
    assert last < 0.9 * first
    changed = {name for name, weight in training.averaged().items() if not torch.equal(weight, before[name])}
    assert changed == {name for name in before if name.startswith("decoder.trunk.")}
