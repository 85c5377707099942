"""Higgs Audio v2: Llama with separate feed-forward layers for text rows and for rows of eight codes."""

from stretto.family.plugin import FamilyPlugin, lazy

PLUGIN = FamilyPlugin(
    name="higgs_audio_v2",
    build=lazy("stretto.families.higgs_audio.family:build", "higgs_audio_v2"),
    open_template=lazy("stretto.families.higgs_audio.prompt:open_template"),
    convert="stretto.families.higgs_audio.convert",
    releases="stretto.families.higgs_audio:releases.json",
    recognise="stretto.families.higgs_audio.recognise:recognise",
    notes="stretto.families.higgs_audio:releases.md",
    architectures={"StrettoHiggsAudioForCausalLM": "stretto.families.higgs_audio.model:StrettoHiggsAudioForCausalLM"},
)
