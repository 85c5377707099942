"""MOSS-TTS: Qwen3 with a text stream and 32 codebooks in the delay pattern."""

from stretto.family.plugin import FamilyPlugin, lazy

PLUGIN = FamilyPlugin(
    name="moss_tts",
    build=lazy("stretto_moss.moss_tts.family:build"),
    open_template=lazy("stretto_moss.moss_tts.prompt:open_template"),
    convert="stretto_moss.moss_tts.convert",
    releases="stretto_moss.moss_tts:releases.json",
    recognise="stretto_moss.moss_tts.recognise:recognise",
    notes="stretto_moss.moss_tts:releases.md",
)
