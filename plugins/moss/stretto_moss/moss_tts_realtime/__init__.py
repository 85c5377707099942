"""MOSS-TTS-Realtime: Qwen3 with a text stream beside 16 codebooks, and a depth transformer for all of them."""

from stretto.family.plugin import FamilyPlugin, lazy

PLUGIN = FamilyPlugin(
    name="moss_tts_realtime",
    build=lazy("stretto_moss.moss_tts_realtime.family:build"),
    open_template=lazy("stretto_moss.moss_tts_realtime.prompt:open_template"),
    convert="stretto_moss.moss_tts_realtime.convert",
    releases="stretto_moss.moss_tts_realtime:releases.json",
    recognise="stretto_moss.moss_tts_realtime.recognise:recognise",
    notes="stretto_moss.moss_tts_realtime:releases.md",
)
