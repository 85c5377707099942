"""Small vocabularies with the structure of the published ones and few ids, and their families."""

from stretto.family.base import DepthSpec
from stretto_fish_s2.family import FishVocabulary, fish_s2

# 120 ids of text, of which 40 are codes, and three more codebooks; the width is that of `write_checkpoint`.
SMALL_FISH_S2 = FishVocabulary(
    120, 60, 4, 40, 50, 51, 52, 53, max_model_len=512,
    depth=DepthSpec(
        128, 96, 2, num_heads=4, num_kv_heads=2, head_dim=16, eps=1e-6,
        rope={"rope_type": "default", "rope_theta": 1e4}, projection=None,
    ),
)  # fmt: skip

FISH_S2 = fish_s2(SMALL_FISH_S2)
