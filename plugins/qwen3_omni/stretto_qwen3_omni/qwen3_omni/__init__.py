"""Qwen3-Omni: a thinker that reads text, audio and images and generates text, and a talker that speaks it."""

from stretto.family.plugin import AudioEncoder, FamilyPlugin, lazy

PLUGIN = FamilyPlugin(
    name="qwen3_omni",
    build=lazy("stretto_qwen3_omni.qwen3_omni.family:build"),
    open_template=lazy("stretto_qwen3_omni.qwen3_omni.prompt:open_template"),
    convert="stretto_qwen3_omni.qwen3_omni.convert",
    releases="stretto_qwen3_omni.qwen3_omni:releases.json",
    recognise="stretto_qwen3_omni.qwen3_omni.recognise:recognise",
    notes="stretto_qwen3_omni.qwen3_omni:releases.md",
    image_encoders={"qwen3_omni_thinker_vision": "stretto_qwen3_omni.qwen3_omni.model"},
    audio_encoders={
        "qwen3_omni_thinker_audio": AudioEncoder(
            lazy("stretto.family.log_mel:MelFormat.from_record"), "stretto_qwen3_omni.qwen3_omni.model"
        )
    },
)
