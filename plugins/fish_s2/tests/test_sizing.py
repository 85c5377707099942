"""The sizes with which docs/gpu_sizes.md estimates streams are those of the published models."""

from stretto_fish_s2.family import FishVocabulary
from tests.benchmarks.sizes import assert_shape_of


def test_estimates_have_the_published_sizes() -> None:
    assert_shape_of("Fish Audio S2 Pro (Qwen3 4B)", FishVocabulary(), 36)
