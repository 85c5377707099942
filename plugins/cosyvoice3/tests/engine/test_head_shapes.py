"""Replies of small models of CosyVoice 3 with one key head, and with three heads in layers of odd sizes."""

from pathlib import Path

import pytest

from plugins.cosyvoice3.lab import random_cosyvoice3
from tests.engine.head_shapes import SHAPES, Shape, assert_replies_match_reference

pytestmark = pytest.mark.engine


def cosyvoice3(patch: pytest.MonkeyPatch, folder: Path, shape: Shape) -> Path:
    for name, value in shape.numbers(shape.whole_width).items():
        if name != "head_dim":  # Qwen2 has none
            patch.setitem(random_cosyvoice3.SMALL, name, value)
    return random_cosyvoice3.convert(folder)


@pytest.mark.nightly
@pytest.mark.parametrize("shape", SHAPES)
def test_replies_match_the_reference_alone_and_batched(
    shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_replies_match_reference(cosyvoice3(monkeypatch, tmp_path, SHAPES[shape]), tmp_path / "reference")
