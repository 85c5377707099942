"""The bundled family agrees with the codec beside its checkpoint."""

from pathlib import Path

from python_backend.codec.registry import load_codec
from python_backend.families.tiny import TINY

BUNDLED = Path(__file__).parents[2] / "model_repository/language_model/1/checkpoint"


def test_the_frame_rate_is_the_codec_s() -> None:
    spec = load_codec(TINY.codec, BUNDLED).spec
    assert TINY.frame_rate == spec.frame_rate
    assert (TINY.layout.num_codebooks, TINY.layout.codebook_size) == (spec.num_codebooks, spec.codebook_size)
