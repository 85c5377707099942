"""Pocket TTS: a small language model that generates latents with a flow head."""

from stretto.family.plugin import FamilyPlugin, lazy

PLUGIN = FamilyPlugin(
    name="pocket_tts",
    build=lazy("stretto_pocket.pocket_tts.family:build"),
    open_template=lazy("stretto_pocket.pocket_tts.prompt:open_template"),
    convert="stretto_pocket.pocket_tts.convert",
    releases="stretto_pocket.pocket_tts:releases.json",
    recognise="stretto_pocket.pocket_tts.recognise:recognise",
    notes="stretto_pocket.pocket_tts:releases.md",
    architectures={"StrettoPocketForCausalLM": "stretto_pocket.pocket_tts.model:StrettoPocketForCausalLM"},
)
