"""MOSS-TTS-Local v1.5: Qwen3 with a slot stream and 12 codebooks, and a depth transformer with a GPT-2 layer."""

from stretto.family.plugin import FamilyPlugin, lazy

PLUGIN = FamilyPlugin(
    name="moss_tts_local",
    build=lazy("stretto_moss.moss_tts_local.family:build"),
    open_template=lazy("stretto_moss.moss_tts_local.prompt:open_template"),
    convert="stretto_moss.moss_tts_local.convert",
    releases="stretto_moss.moss_tts_local:releases.json",
    recognise="stretto_moss.moss_tts_local.recognise:recognise",
    notes="stretto_moss.moss_tts_local:releases.md",
)
