"""Qwen3-Omni talker: the layout of Qwen3-TTS with a mixture of experts. It speaks the text of a separate thinker."""

from stretto.codecs.decoder_sizes import DecoderSize
from stretto.family.plugin import AudioEncoder, FamilyPlugin, lazy

PLUGIN = FamilyPlugin(
    name="qwen3_omni_talker",
    build=lazy("stretto_qwen3_omni.qwen3_omni_talker.family:build"),
    audio_encoders={
        "thinker_states": AudioEncoder(
            lazy("stretto.family.audio_format:VectorFormat.from_record"), "stretto_qwen3_omni.qwen3_omni_talker.model"
        )
    },
    image_encoders={"thinker_image_states": "stretto_qwen3_omni.qwen3_omni_talker.model"},
    decoders={"qwen3_omni": DecoderSize(11.28, 69.1)},
)
