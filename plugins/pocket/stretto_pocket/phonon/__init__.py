"""Phonon: Pocket TTS's design with a speaker codec's latents as voices and conditions that are added to every frame."""

from stretto.family.plugin import family_plugin

PLUGIN = family_plugin(
    __name__,
    architectures={"StrettoPhononForCausalLM": f"{__name__}.model:StrettoPhononForCausalLM"},
)
