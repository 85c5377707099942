"""Phonon, a model like Pocket TTS whose voices are latents of a speaker codec."""

from stretto.family.plugin import family_plugin

PLUGIN = family_plugin(
    __name__,
    architectures={"StrettoPhononForCausalLM": f"{__name__}.model:StrettoPhononForCausalLM"},
)
