"""Bagpiper: Qwen3-8B with the Qwen3-Omni audio encoder for input and X-codec for output."""

from stretto.family.plugin import UNNAMED, AudioEncoder, FamilyPlugin, lazy

ENCODER = AudioEncoder(lazy("stretto.family.log_mel:MelFormat.from_record"), "stretto.families.bagpiper.model")
PLUGIN = FamilyPlugin(
    name="bagpiper",
    build=lazy("stretto.families.bagpiper.family:build", "bagpiper"),
    open_template=lazy("stretto.families.bagpiper.prompt:open_template"),
    convert="stretto.families.bagpiper.convert",
    releases="stretto.families.bagpiper:releases.json",
    recognise="stretto.families.bagpiper.recognise:recognise",
    notes="stretto.families.bagpiper:releases.md",
    audio_encoders={"qwen3_omni_moe_audio_encoder": ENCODER, UNNAMED: ENCODER},
)
