import argparse
import random
from pathlib import Path

import pytest
import torch

from stretto.codecs.tiny import codec as tiny
from stretto.codecs.tiny.codec import HOP, log_mel
from training.tiny import train_vocoder
from training.tiny.export_codec import export

pytestmark = pytest.mark.slow
FRAMES = 96


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """Train for seconds with a short clip of noise, small trunks, and a cached shard."""
    torch.manual_seed(0)
    pcm = 0.1 * torch.randn(FRAMES * HOP)
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "shard_0000.pt").touch()
    torch.save([(pcm, log_mel(pcm), torch.full((FRAMES,), 120.0))], out / "clips_shard_0000.pt")
    tables = {"mu": torch.zeros(256), "P": torch.eye(256)[:, :4], "cb": torch.randn(7, 8, 4)}
    torch.save(tables, tmp_path / "rvq.pt")
    monkeypatch.setattr(train_vocoder, "BATCH", 2)
    small = train_vocoder.VocoderConfig(channels=8, blocks=3, pitch_channels=8, pitch_blocks=3)
    monkeypatch.setattr(train_vocoder, "VocoderConfig", lambda: small)
    return argparse.Namespace(data=tmp_path, rvq=tmp_path / "rvq.pt", out=out, shards=1, iterations=6, seed=0)


def test_resumed_vocoder_training_gives_the_same_weights(
    run: argparse.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_vocoder.train(run)
    at_once = torch.load(run.out / "vocoder.pt")
    (run.out / "vocoder.pt").unlink()
    rate = train_vocoder.rate
    monkeypatch.setattr(train_vocoder, "rate", lambda iteration, _: rate(iteration, 6))
    run.iterations = 3
    train_vocoder.train(run)
    assert torch.load(run.out / "vocoder.pt")["iteration"] == 3
    run.iterations = 6
    train_vocoder.train(run)
    resumed = torch.load(run.out / "vocoder.pt")
    assert all(torch.equal(at_once["vocoder"][name], resumed["vocoder"][name]) for name in resumed["vocoder"])


def test_training_lowers_the_loss(run: argparse.Namespace) -> None:
    clips = train_vocoder.load_clips(run.data, run.out, 1)
    training = train_vocoder.Training(train_vocoder.new_vocoder(clips), run.out / "none.pt")
    batch = train_vocoder.draw_batch(clips, [[clips[0].mel]], random.Random(0), 2, 68)
    totals = []
    for _ in range(12):
        terms = train_vocoder.losses(training.vocoder, batch, 0)
        totals.append(terms["spectral"].item())
        training.step(terms, 3e-3)
    assert totals[-1] < 0.8 * totals[0]


def test_exported_codec_loads(run: argparse.Namespace, tmp_path: Path) -> None:
    train_vocoder.train(run)
    export(run.out / "vocoder.pt", run.rvq, tmp_path / "checkpoint")
    codec = tiny.load(tmp_path / "checkpoint")
    weights = torch.load(run.out / "vocoder.pt")["vocoder"]["filter_trunk.enter.weight"]
    assert torch.equal(codec.vocoder.filter_trunk.enter.weight, weights.half().float())
    assert codec.spec.codebook_size == 8
