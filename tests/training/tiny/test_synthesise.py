"""Shards of training speech, and flite if it is installed."""

import shutil
from pathlib import Path

import pytest
import torch

from training.tiny.flite import pronounce
from training.tiny.synthesise import Utterance, read_shard, spelled_words, utter, write_shard

needs_flite = pytest.mark.skipif(shutil.which("flite") is None, reason="flite is not installed")


def test_words_are_spelled_without_punctuation() -> None:
    assert spelled_words("sorry, it's ten o'clock. is it?") == ["sorry", "it's", "ten", "o'clock", "is", "it"]


def test_shard_round_trips(tmp_path: Path) -> None:
    utterance = Utterance(
        "up", "slt", ("pau", "ah", "p"), (0.1, 0.2, 0.3), (-1, 0, 0), torch.arange(5, dtype=torch.int16)
    )
    write_shard(tmp_path / "shard_0000.pt", [utterance])
    (found,) = read_shard(tmp_path / "shard_0000.pt")
    assert torch.equal(found.pcm, utterance.pcm)
    assert (found.text, found.voice, found.phonemes, found.ends_s, found.words) == (
        "up", "slt", ("pau", "ah", "p"), (0.1, 0.2, 0.3), (-1, 0, 0)
    )  # fmt: skip


@needs_flite
def test_flite_pronounces_each_word_separately() -> None:
    assert pronounce(["cat", "apple"], batch=2) == {"cat": ("k", "ae", "t"), "apple": ("ae", "p", "ax", "l")}


@needs_flite
def test_synthesised_utterance_has_words_times_and_samples(tmp_path: Path) -> None:
    alone = pronounce(["a", "birch", "canoe"])
    found = utter("a birch, canoe.", "rms", alone, tmp_path / "scratch.wav")
    assert found is not None
    assert sorted(set(found.words)) == [-1, 0, 1, 2]
    assert list(found.ends_s) == sorted(found.ends_s)
    assert abs(len(found.pcm) / 16_000 - found.ends_s[-1]) < 0.1
