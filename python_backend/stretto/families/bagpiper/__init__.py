"""Bagpiper: Qwen3-8B with the Qwen3-Omni audio encoder for input and X-codec for output."""

from stretto.family.plugin import UNNAMED, AudioEncoder, family_plugin, lazy

ENCODER = AudioEncoder(lazy("stretto.family.log_mel:MelFormat.from_record"), f"{__name__}.model")
PLUGIN = family_plugin(
    __name__,
    audio_encoders={"qwen3_omni_moe_audio_encoder": ENCODER, UNNAMED: ENCODER},
)
