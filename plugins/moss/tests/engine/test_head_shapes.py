"""Replies of small models of the MOSS families with one key head, and with three heads in layers of odd sizes."""

from pathlib import Path

import pytest

from plugins.moss.lab import random_moss, random_moss_local, random_moss_realtime
from tests.engine.head_shapes import SHAPES, Shape, Write, assert_replies_match_reference, converted

pytestmark = pytest.mark.engine


def moss_tts(patch: pytest.MonkeyPatch, folder: Path, shape: Shape) -> Path:
    codebooks, codes, backbone = random_moss.KINDS["small"]
    patch.setitem(random_moss.KINDS, "small", (codebooks, codes, backbone | shape.numbers()))
    return converted(random_moss.command(random_moss.write_release(folder / "release", "small")), folder)


def moss_realtime(patch: pytest.MonkeyPatch, folder: Path, shape: Shape) -> Path:
    """The depth transformer is as wide as the backbone, and has as many heads."""
    codebooks, codes, backbone, depth = random_moss_realtime.KINDS["small"]
    depth = depth | shape.heads | {"hidden_size": shape.width, "intermediate_size": 42}
    patch.setitem(random_moss_realtime.KINDS, "small", (codebooks, codes, backbone | shape.numbers(), depth))
    release = random_moss_realtime.write_release(folder / "release", "small")
    return converted(random_moss_realtime.command(release), folder)


def moss_local(patch: pytest.MonkeyPatch, folder: Path, shape: Shape) -> Path:
    """The depth transformer is as wide as the backbone; an odd inner width."""
    codebooks, codes, backbone, (_, _, layers, activation) = random_moss_local.KINDS["small"]
    kind = codebooks, codes, backbone | shape.numbers(shape.whole_width), (shape.num_heads, 83, layers, activation)
    patch.setitem(random_moss_local.KINDS, "small", kind)
    return converted(random_moss_local.command(random_moss_local.write_release(folder / "release", "small")), folder)


@pytest.mark.nightly
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("write", [moss_tts, moss_local, moss_realtime])
def test_replies_match_the_reference_alone_and_batched(
    write: Write, shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_replies_match_reference(write(monkeypatch, tmp_path, SHAPES[shape]), tmp_path / "reference")
