"""Qwen3-ASR: Qwen3 with an audio encoder, which transcribes recordings in 30 languages and names the language."""

from stretto.family.plugin import AudioEncoder, family_plugin, lazy
from stretto.family.recognition import OneRelease

ALIGNER = {"thinker_config.classify_num": (None,)}  # only Qwen3-ForcedAligner, which writes no text, has this field
RELEASE = OneRelease("qwen3_asr", "Qwen3-ASR", "qwen3_asr", expected=ALIGNER)
PLUGIN = family_plugin(
    __name__,
    recognise=f"{__name__}:RELEASE",
    text_codec=lazy(f"{__name__}.reader:open_text_codec"),
    audio_encoders={
        "qwen3_asr_audio_encoder": AudioEncoder(
            lazy("stretto.family.log_mel:MelFormat.from_record"), "stretto.family.log_mel_encoder"
        )
    },
)
