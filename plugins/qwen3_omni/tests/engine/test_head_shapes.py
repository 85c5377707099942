"""Replies of small models of Qwen3-Omni with one key head, and with three heads in layers of odd sizes."""

from pathlib import Path

import pytest

from plugins.qwen3_omni.lab import random_qwen3_omni
from plugins.qwen3_omni.tests import published_qwen3_omni, published_qwen3_omni_thinker
from tests.engine.head_shapes import LENGTH, SHAPES, assert_replies_match

pytestmark = pytest.mark.engine


@pytest.mark.nightly
@pytest.mark.parametrize("shape", SHAPES)
def test_replies_of_the_thinker_match_transformers(shape: str, tmp_path: Path) -> None:
    config = random_qwen3_omni.small_config()
    config["thinker_config"]["text_config"] |= SHAPES[shape].heads
    checkpoint = published_qwen3_omni_thinker.convert(tmp_path, config)
    written = published_qwen3_omni_thinker.Written(checkpoint)
    asked = published_qwen3_omni_thinker.conversations()
    prompts = {name: written.prompt(asked[name], 16) for name in ("text", "system", "thoughts", "audio")}
    theirs = published_qwen3_omni_thinker.Theirs(config)
    assert_replies_match(checkpoint, prompts, published_qwen3_omni_thinker.ThinkerReference(checkpoint, LENGTH, theirs))


@pytest.mark.nightly
@pytest.mark.parametrize("shape", SHAPES)
def test_replies_of_the_talker_match_transformers(shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = random_qwen3_omni.small_config()
    for part in ("text_config", "code_predictor_config"):
        config["talker_config"][part] |= SHAPES[shape].heads
    monkeypatch.setattr(published_qwen3_omni, "small_config", lambda: config)
    checkpoint = published_qwen3_omni.convert(tmp_path)
    cases = published_qwen3_omni.cases()
    prompts = {name: cases[name].prompt(checkpoint, 12) for name in list(cases)[:4]}
    assert_replies_match(checkpoint, prompts, published_qwen3_omni.TalkerReference(checkpoint, LENGTH))
