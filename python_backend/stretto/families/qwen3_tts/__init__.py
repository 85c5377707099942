"""Qwen3-TTS at 12.5 frames per second: Qwen3 over rows of text and codes, with a depth transformer."""

from stretto.family.plugin import AudioEncoder, family_plugin, lazy

PLUGIN = family_plugin(
    __name__,
    audio_encoders={
        "x_vector": AudioEncoder(lazy("stretto.family.audio_format:VectorFormat.from_record"), f"{__name__}.model")
    },
)
