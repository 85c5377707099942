"""Replies of small VibeVoice models with one key head."""

from collections.abc import Callable
from pathlib import Path

import pytest

from plugins.vibevoice.lab import random_vibevoice_realtime
from plugins.vibevoice.tests import vibevoice_release
from tests.engine.head_shapes import assert_copies_give_the_same_replies, converted

pytestmark = pytest.mark.engine


def vibevoice(patch: pytest.MonkeyPatch, folder: Path) -> Path:
    config = vibevoice_release.config("long")
    config.text_config.num_key_value_heads = 1
    patch.setattr(vibevoice_release, "config", lambda kind: config)
    return vibevoice_release.convert_release(folder, "long")


def vibevoice_realtime(patch: pytest.MonkeyPatch, folder: Path) -> Path:
    sizes, _, layers = random_vibevoice_realtime.SIZES["small"]
    patch.setitem(random_vibevoice_realtime.SIZES, "small", (sizes, (4, 1), layers))
    return converted(
        ["vibevoice-realtime", "--model", str(random_vibevoice_realtime.write_release(folder / "release"))], folder
    )


@pytest.mark.nightly
@pytest.mark.parametrize("write", [vibevoice, vibevoice_realtime])
def test_one_key_head_gives_the_replies_of_copies_of_it(
    write: Callable[[pytest.MonkeyPatch, Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_copies_give_the_same_replies(write(monkeypatch, tmp_path), tmp_path / "repeated")
