"""Pocket TTS: a small language model that generates latents with a flow head."""

from stretto.family.plugin import FamilyPlugin, lazy

PLUGIN = FamilyPlugin(
    name="pocket_tts",
    build=lazy("stretto.families.pocket_tts.family:build"),
    open_template=lazy("stretto.families.pocket_tts.prompt:open_template"),
    convert="stretto.families.pocket_tts.convert",
    releases="stretto.families.pocket_tts:releases.json",
    recognise="stretto.families.pocket_tts.recognise:recognise",
    notes="stretto.families.pocket_tts:releases.md",
    architectures={"StrettoPocketForCausalLM": "stretto.families.pocket_tts.model:StrettoPocketForCausalLM"},
)
