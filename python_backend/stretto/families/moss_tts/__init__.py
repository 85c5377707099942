"""MOSS-TTS: Qwen3 with a text stream and 32 codebooks in the delay pattern."""

from stretto.family.plugin import FamilyPlugin, lazy

PLUGIN = FamilyPlugin(
    name="moss_tts",
    build=lazy("stretto.families.moss_tts.family:build"),
    open_template=lazy("stretto.families.moss_tts.prompt:open_template"),
    convert="stretto.families.moss_tts.convert",
    releases="stretto.families.moss_tts:releases.json",
    recognise="stretto.families.moss_tts.recognise:recognise",
    notes="stretto.families.moss_tts:releases.md",
)
