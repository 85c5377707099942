"""Qwen3-Omni: a thinker that reads text, audio and images and generates text, and a talker that speaks it."""

from stretto.family.plugin import AudioEncoder, family_plugin, lazy
from stretto.family.recognition import OneRelease

RELEASE = OneRelease("qwen3_omni", "Qwen3-Omni", "qwen3_omni_moe")
PLUGIN = family_plugin(
    __name__,
    recognise=f"{__name__}:RELEASE",
    image_encoders={"qwen3_omni_thinker_vision": f"{__name__}.model"},
    audio_encoders={
        "qwen3_omni_thinker_audio": AudioEncoder(
            lazy("stretto.family.log_mel:MelFormat.from_record"), f"{__name__}.model"
        )
    },
)
