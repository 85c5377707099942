"""Replies of small models of Fish Audio S2 with one key head, and with three heads in layers of odd sizes."""

from pathlib import Path

import pytest

from plugins.fish_s2.lab import random_fish_s2
from tests.engine.head_shapes import SHAPES, Shape, assert_replies_match_reference, converted
from tests.tiers import by_night

pytestmark = pytest.mark.engine


def fish_s2(patch: pytest.MonkeyPatch, folder: Path, shape: Shape) -> Path:
    """The depth transformer is as wide; transformers' Llama, its reference, has heads that divide the width."""
    codebooks, codes, backbone, depth = random_fish_s2.KINDS["small"]
    sizes = {"dim": shape.width, "n_head": shape.num_heads, "n_local_heads": shape.num_kv_heads}
    depth = depth | sizes | {"n_head": 2 * shape.num_kv_heads}
    patch.setitem(random_fish_s2.KINDS, "small", (codebooks, codes, backbone | sizes, depth))
    return converted(random_fish_s2.command(random_fish_s2.write_release(folder / "release", "small")), folder)


@pytest.mark.parametrize("shape", ["one key head", *by_night("three heads")])
def test_replies_match_the_reference_alone_and_batched(
    shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_replies_match_reference(fish_s2(monkeypatch, tmp_path, SHAPES[shape]), tmp_path / "reference")
