"""Chatterbox's T3: Llama over rows of text followed by codes, with learned positions, and guided by default."""

from stretto.families.plugin import AudioEncoder, FamilyPlugin, lazy

PLUGIN = FamilyPlugin(
    name="chatterbox",
    build=lazy("stretto.families.chatterbox.family:build", "chatterbox"),
    open_template=lazy("stretto.families.chatterbox.prompt:open_template"),
    convert="stretto.families.chatterbox.convert",
    audio_encoders={
        "chatterbox_voice": AudioEncoder(
            lazy("stretto.families.audio_format:VectorFormat.from_record"), "stretto.families.chatterbox.model"
        )
    },
)
