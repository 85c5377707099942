"""The sizes with which docs/gpu_sizes.md estimates streams are those of the published models."""

from stretto_higgs_audio.higgs_audio.family import HiggsAudioVocabulary
from stretto_higgs_audio.higgs_audio_v3.family import HiggsAudioV3Vocabulary
from tests.benchmarks.sizes import assert_shape_of


def test_estimates_have_the_published_sizes() -> None:
    assert_shape_of("Higgs Audio v2 (Llama 3.2 3B)", HiggsAudioVocabulary(), 28)
    assert_shape_of("Higgs TTS 3 (Qwen3 4B)", HiggsAudioV3Vocabulary(), 36)
