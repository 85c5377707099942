"""Higgs Audio v2: Llama with separate feed-forward layers for text rows and for rows of eight codes."""

from stretto.family.plugin import family_plugin

PLUGIN = family_plugin(
    __name__,
    name="higgs_audio_v2",
    architectures={"StrettoHiggsAudioForCausalLM": f"{__name__}.model:StrettoHiggsAudioForCausalLM"},
)
