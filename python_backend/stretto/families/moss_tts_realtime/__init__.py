"""MOSS-TTS-Realtime: Qwen3 with a text stream beside 16 codebooks, and a depth transformer for all of them."""

from stretto.family.plugin import FamilyPlugin, lazy

PLUGIN = FamilyPlugin(
    name="moss_tts_realtime",
    build=lazy("stretto.families.moss_tts_realtime.family:build"),
    open_template=lazy("stretto.families.moss_tts_realtime.prompt:open_template"),
    convert="stretto.families.moss_tts_realtime.convert",
    releases="stretto.families.moss_tts_realtime:releases.json",
    recognise="stretto.families.moss_tts_realtime.recognise:recognise",
    notes="stretto.families.moss_tts_realtime:releases.md",
)
