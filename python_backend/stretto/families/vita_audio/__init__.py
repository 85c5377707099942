"""VITA-Audio: interleaved text and speech in one stream, with several ids per forward pass."""

from stretto.family.plugin import AudioEncoder, FamilyPlugin, lazy

PLUGIN = FamilyPlugin(
    name="vita_audio",
    build=lazy("stretto.families.vita_audio.family:build", "vita_audio"),
    open_template=lazy("stretto.families.vita_audio.prompt:open_template"),
    convert="stretto.families.vita_audio.convert",
    releases="stretto.families.vita_audio:releases.json",
    recognise="stretto.families.vita_audio.recognise:recognise",
    notes="stretto.families.vita_audio:releases.md",
    audio_encoders={
        "sense_voice_small": AudioEncoder(
            lazy("stretto.families.vita_audio.family:StackedFormat.from_record"), "stretto.families.vita_audio.model"
        )
    },
)
