"""Higgs Audio v2: Llama with separate feed-forward layers for text rows and for rows of eight codes."""

from stretto.family.plugin import FamilyPlugin, lazy

PLUGIN = FamilyPlugin(
    name="higgs_audio_v2",
    build=lazy("stretto_higgs_audio.higgs_audio.family:build", "higgs_audio_v2"),
    open_template=lazy("stretto_higgs_audio.higgs_audio.prompt:open_template"),
    convert="stretto_higgs_audio.higgs_audio.convert",
    releases="stretto_higgs_audio.higgs_audio:releases.json",
    recognise="stretto_higgs_audio.higgs_audio.recognise:recognise",
    notes="stretto_higgs_audio.higgs_audio:releases.md",
    architectures={
        "StrettoHiggsAudioForCausalLM": "stretto_higgs_audio.higgs_audio.model:StrettoHiggsAudioForCausalLM"
    },
)
