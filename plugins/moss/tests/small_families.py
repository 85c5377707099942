"""Small vocabularies with the structure of the published ones and few ids, and their families."""

from dataclasses import replace

from stretto_moss.moss_tts.family import MossVocabulary, moss_tts
from stretto_moss.moss_tts_local.family import Gpt2Spec, LocalVocabulary, moss_tts_local
from stretto_moss.moss_tts_nano.family import NanoVocabulary, moss_tts_nano
from stretto_moss.moss_tts_realtime.family import MossRealtimeVocabulary, moss_tts_realtime
from tests.small_vocabularies import SMALL_DEPTH

# 60 ids of text, four codebooks of 5 codes and a pad each.
SMALL_MOSS_TTS = MossVocabulary(60, 4, 5, 52, 53, 54, 55, 56, 57, 58, 59, max_model_len=512)

MOSS_TTS = moss_tts(SMALL_MOSS_TTS)

# 60 ids of text, four codebooks of 8 codes, a pad, a begin and an end each.
SMALL_MOSS_TTS_REALTIME = MossRealtimeVocabulary(
    60, 4, 8, 56, 57, 58, 59, max_model_len=512,
    depth=replace(SMALL_DEPTH, projection="plain", has_head_norms=True, num_first=1),
)  # fmt: skip

MOSS_TTS_REALTIME = moss_tts_realtime(SMALL_MOSS_TTS_REALTIME)

# 60 ids of text, four codebooks of 8 codes each; the width is that of `write_checkpoint`.
SMALL_MOSS_TTS_LOCAL = LocalVocabulary(
    60, 4, 8, 53, 54, 55, 56, 57, 58, 59, max_model_len=512,
    depth=Gpt2Spec(
        128, 96, 2, num_heads=4, num_kv_heads=4, head_dim=32, eps=1e-6,
        rope={"rope_type": "default", "rope_theta": 1e4}, projection=None, num_first=2,
    ),
)  # fmt: skip

MOSS_TTS_LOCAL = moss_tts_local(SMALL_MOSS_TTS_LOCAL)

# The same ids, with a depth transformer that reads the slot.
SMALL_MOSS_TTS_NANO = NanoVocabulary(
    60, 4, 8, 53, 54, 55, 56, 57, 58, 59, max_model_len=512,
    depth=replace(SMALL_MOSS_TTS_LOCAL.depth, num_first=1, gpt2_activation="gelu_new"),
)  # fmt: skip

MOSS_TTS_NANO = moss_tts_nano(SMALL_MOSS_TTS_NANO)
