"""The sizes with which docs/gpu_sizes.md estimates streams are those of the published models."""

from stretto_cosyvoice3.family import CosyVoice3Vocabulary
from tests.benchmarks.sizes import assert_shape_of


def test_estimates_have_the_published_sizes() -> None:
    assert_shape_of("CosyVoice 3 (Qwen2 0.5B)", CosyVoice3Vocabulary(), 24)
