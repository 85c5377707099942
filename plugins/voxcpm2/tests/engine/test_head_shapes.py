"""Replies of a small VoxCPM2 with one key head."""

from pathlib import Path

import pytest

from plugins.voxcpm2.lab import random_voxcpm2
from plugins.voxcpm2.tests import voxcpm2_release
from tests.engine.head_shapes import assert_copies_give_the_same_replies

pytestmark = pytest.mark.engine


def voxcpm2(patch: pytest.MonkeyPatch, folder: Path) -> Path:
    config = random_voxcpm2.config()
    for part in ("encoder_config", "dit_config"):
        config[part] |= {"num_heads": 3}
    config["lm_config"] |= {"num_attention_heads": 3, "num_key_value_heads": 1}
    patch.setattr(random_voxcpm2, "config", lambda kind: config)
    return voxcpm2_release.convert_release(folder)


@pytest.mark.nightly
def test_one_key_head_gives_the_replies_of_copies_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_copies_give_the_same_replies(voxcpm2(monkeypatch, tmp_path), tmp_path / "repeated")
