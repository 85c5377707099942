"""Phonon, which has Pocket TTS's design. Its voices are latents of a speaker codec, and conditions are added to
every frame.
"""

from stretto.family.plugin import family_plugin

PLUGIN = family_plugin(
    __name__,
    architectures={"StrettoPhononForCausalLM": f"{__name__}.model:StrettoPhononForCausalLM"},
)
