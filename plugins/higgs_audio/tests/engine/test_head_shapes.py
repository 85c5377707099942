"""Replies of small models of Higgs Audio v3 with one key head, and with three heads in layers of odd sizes."""

from pathlib import Path

import pytest

from plugins.higgs_audio.lab import random_higgs_audio_v3
from tests.engine.head_shapes import SHAPES, Shape, assert_replies_match_reference, converted

pytestmark = pytest.mark.engine


def higgs_audio_v3(patch: pytest.MonkeyPatch, folder: Path, shape: Shape) -> Path:
    patch.setitem(random_higgs_audio_v3.KINDS, "narrow", random_higgs_audio_v3.NARROW | shape.numbers())
    release = random_higgs_audio_v3.write_release(folder / "release", "narrow")
    words = ["higgs-audio-v3", "--model", str(release), "--config", f"{release}/config.json"]
    return converted([*words, "--tokenizer", str(release)], folder)


@pytest.mark.nightly
@pytest.mark.parametrize("shape", SHAPES)
def test_replies_match_the_reference_alone_and_batched(
    shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_replies_match_reference(higgs_audio_v3(monkeypatch, tmp_path, SHAPES[shape]), tmp_path / "reference")
