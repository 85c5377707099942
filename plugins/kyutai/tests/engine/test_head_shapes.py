"""Replies of small models of Kyutai's families with one key head, and with three heads in layers of odd sizes."""

from pathlib import Path

import pytest

from plugins.kyutai.tests.small_families import SMALL_MOSHI, SMALL_PERSONAPLEX, SMALL_STT, SMALL_TTS
from stretto.family.plugin import plugin
from stretto.testing.checkpoints import write_checkpoint
from tests.engine.head_shapes import SHAPES, Shape, assert_replies_match_reference

pytestmark = pytest.mark.engine
VOCABULARIES = {
    "kyutai_stt": SMALL_STT,
    "kyutai_tts": SMALL_TTS,
    "moshi": SMALL_MOSHI,
    "personaplex": SMALL_PERSONAPLEX,
}


@pytest.mark.nightly
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("family", VOCABULARIES)
def test_replies_match_the_reference_alone_and_batched(family: str, shape: Shape, tmp_path: Path) -> None:
    """In a release, each head has keys of its own."""
    record = VOCABULARIES[family].to_record()
    sizes = {"hidden": shape.whole_width, "heads": shape.num_heads, "kv_heads": shape.num_kv_heads, "layers": 2}
    checkpoint = write_checkpoint(
        tmp_path / "checkpoint", plugin(family).build(record), family, backbone="llama", vocabulary=record, **sizes
    )
    assert_replies_match_reference(checkpoint, tmp_path / "reference")
