"""The bundled family agrees with the codec in its checkpoint."""

from pathlib import Path

from stretto.codecs.base import load_codec
from stretto.families.tiny.family import TINY

BUNDLED = Path(__file__).parents[3] / "model_repository/language_model/1/checkpoint"


def test_frame_rate_matches_the_codec() -> None:
    spec = load_codec(TINY.codec, BUNDLED).spec
    assert TINY.frame_rate == spec.frame_rate
    assert (TINY.layout.num_codebooks, TINY.layout.codebook_size) == (spec.num_codebooks, spec.codebook_size)
