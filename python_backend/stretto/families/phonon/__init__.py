"""Phonon: Pocket TTS's design with a speaker codec's latents as voices and conditions that are added to every frame."""

from stretto.family.plugin import FamilyPlugin, lazy

PLUGIN = FamilyPlugin(
    name="phonon",
    build=lazy("stretto.families.phonon.family:build"),
    open_template=lazy("stretto.families.phonon.prompt:open_template"),
    convert="stretto.families.phonon.convert",
    releases="stretto.families.phonon:releases.json",
    recognise="stretto.families.phonon.recognise:recognise",
    notes="stretto.families.phonon:releases.md",
    architectures={"StrettoPhononForCausalLM": "stretto.families.phonon.model:StrettoPhononForCausalLM"},
)
