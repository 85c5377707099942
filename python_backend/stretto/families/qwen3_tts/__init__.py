"""Qwen3-TTS at 12.5 frames per second: Qwen3 over rows of text and codes, with a depth transformer."""

from stretto.family.plugin import AudioEncoder, FamilyPlugin, lazy

PLUGIN = FamilyPlugin(
    name="qwen3_tts",
    build=lazy("stretto.families.qwen3_tts.family:build", "qwen3_tts"),
    open_template=lazy("stretto.families.qwen3_tts.prompt:open_template"),
    convert="stretto.families.qwen3_tts.convert",
    releases="stretto.families.qwen3_tts:releases.json",
    recognise="stretto.families.qwen3_tts.recognise:recognise",
    notes="stretto.families.qwen3_tts:releases.md",
    audio_encoders={
        "x_vector": AudioEncoder(
            lazy("stretto.family.audio_format:VectorFormat.from_record"), "stretto.families.qwen3_tts.model"
        )
    },
)
