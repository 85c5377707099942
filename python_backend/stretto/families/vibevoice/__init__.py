"""VibeVoice: Qwen2.5 with a diffusion head for acoustic latents. It also reads features of its own speech."""

from stretto.family.plugin import FamilyPlugin, lazy

PLUGIN = FamilyPlugin(
    name="vibevoice",
    build=lazy("stretto.families.vibevoice.family:build"),
    open_template=lazy("stretto.families.vibevoice.prompt:open_template"),
    convert="stretto.families.vibevoice.convert",
    releases="stretto.families.vibevoice:releases.json",
    recognise="stretto.families.vibevoice.recognise:recognise",
    notes="stretto.families.vibevoice:releases.md",
    architectures={"StrettoVibeVoiceForCausalLM": "stretto.families.vibevoice.model:StrettoVibeVoiceForCausalLM"},
)
