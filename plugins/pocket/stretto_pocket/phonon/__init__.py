"""Phonon: Pocket TTS's design with a speaker codec's latents as voices and conditions that are added to every frame."""

from stretto.family.plugin import FamilyPlugin, lazy

PLUGIN = FamilyPlugin(
    name="phonon",
    build=lazy("stretto_pocket.phonon.family:build"),
    open_template=lazy("stretto_pocket.phonon.prompt:open_template"),
    convert="stretto_pocket.phonon.convert",
    releases="stretto_pocket.phonon:releases.json",
    recognise="stretto_pocket.phonon.recognise:recognise",
    notes="stretto_pocket.phonon:releases.md",
    architectures={"StrettoPhononForCausalLM": "stretto_pocket.phonon.model:StrettoPhononForCausalLM"},
)
