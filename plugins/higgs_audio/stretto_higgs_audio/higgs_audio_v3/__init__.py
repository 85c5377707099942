"""Higgs Audio v3 (Higgs TTS 3): Qwen3 4B over rows of text or of eight delayed codes."""

from stretto.family.plugin import FamilyPlugin, lazy

PLUGIN = FamilyPlugin(
    name="higgs_audio_v3",
    build=lazy("stretto_higgs_audio.higgs_audio_v3.family:build"),
    open_template=lazy("stretto_higgs_audio.higgs_audio_v3.prompt:open_template"),
    convert="stretto_higgs_audio.higgs_audio_v3.convert",
    releases="stretto_higgs_audio.higgs_audio_v3:releases.json",
    recognise="stretto_higgs_audio.higgs_audio_v3.recognise:recognise",
    notes="stretto_higgs_audio.higgs_audio_v3:releases.md",
)
