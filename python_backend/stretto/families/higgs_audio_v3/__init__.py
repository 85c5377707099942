"""Higgs Audio v3 (Higgs TTS 3): Qwen3 4B over rows of text or of eight delayed codes."""

from stretto.family.plugin import FamilyPlugin, lazy

PLUGIN = FamilyPlugin(
    name="higgs_audio_v3",
    build=lazy("stretto.families.higgs_audio_v3.family:build"),
    open_template=lazy("stretto.families.higgs_audio_v3.prompt:open_template"),
    convert="stretto.families.higgs_audio_v3.convert",
    releases="stretto.families.higgs_audio_v3:releases.json",
    recognise="stretto.families.higgs_audio_v3.recognise:recognise",
    notes="stretto.families.higgs_audio_v3:releases.md",
)
