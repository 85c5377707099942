"""Bagpiper: Qwen3-8B with Qwen3-Omni's audio encoder and X-codec as its output codec."""

from stretto.families.plugin import UNNAMED, AudioEncoder, FamilyPlugin, lazy

ENCODER = AudioEncoder(
    lazy("stretto.families.bagpiper.family:MelFormat.from_record"), "stretto.families.bagpiper.model"
)
PLUGIN = FamilyPlugin(
    name="bagpiper",
    build=lazy("stretto.families.bagpiper.family:build", "bagpiper"),
    open_template=lazy("stretto.families.bagpiper.prompt:open_template"),
    convert="stretto.families.bagpiper.convert",
    audio_encoders={"qwen3_omni_moe_audio_encoder": ENCODER, UNNAMED: ENCODER},
)
