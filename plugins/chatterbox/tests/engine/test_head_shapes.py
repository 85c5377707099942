"""Replies of small Chatterbox models with one key head, and with three heads in layers of odd sizes."""

from dataclasses import replace
from pathlib import Path

import pytest

from plugins.chatterbox.lab import random_chatterbox
from tests.engine.head_shapes import SHAPES, Shape, assert_copies_give_the_same_replies, assert_replies_match_reference
from tests.tiers import by_night

pytestmark = pytest.mark.engine


def chatterbox(patch: pytest.MonkeyPatch, folder: Path, shape: Shape) -> Path:
    for name, value in shape.numbers(shape.whole_width).items():
        patch.setitem(random_chatterbox.SMALL, name, value)
    return random_chatterbox.convert(folder)


def chatterbox_turbo(patch: pytest.MonkeyPatch, folder: Path, shape: Shape) -> Path:
    """Heads of 64 that have their own keys each."""
    sizes = replace(random_chatterbox.TURBO, width=random_chatterbox.HEAD_WIDTH * shape.num_kv_heads)
    return random_chatterbox.convert_turbo(folder, sizes)


@pytest.mark.parametrize("shape", ["one key head", *by_night("three heads")])
def test_replies_match_the_reference_alone_and_batched(
    shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_replies_match_reference(chatterbox_turbo(monkeypatch, tmp_path, SHAPES[shape]), tmp_path / "reference")


@pytest.mark.nightly
def test_one_key_head_gives_the_replies_of_copies_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = chatterbox(monkeypatch, tmp_path, SHAPES["one key head"])
    assert_copies_give_the_same_replies(checkpoint, tmp_path / "repeated")
