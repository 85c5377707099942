"""The sizes with which docs/gpu_sizes.md estimates streams are those of the published models."""

from dataclasses import replace

from stretto_kyutai.kyutai_stt.family import SttVocabulary
from stretto_kyutai.kyutai_tts.family import DEPTH, TtsVocabulary
from stretto_kyutai.moshi.family import MoshiVocabulary
from tests.benchmarks.sizes import assert_shape_of


def test_estimates_have_the_published_sizes() -> None:
    depth = replace(DEPTH, schedule=(*range(8), *[8] * 8, *[9] * 8, *[10] * 8))
    large_tts = TtsVocabulary(num_codebooks=32, delays=(0, *[2] * 31), depth=depth, ahead=2)
    assert_shape_of("Kyutai TTS 1.6B", large_tts, 16)
    assert_shape_of("Kyutai STT 1B, live sessions", SttVocabulary(), 16)
    assert_shape_of("Moshi 7B, live sessions", MoshiVocabulary(), 32)
