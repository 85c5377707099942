"""VibeVoice: Qwen2.5 with a diffusion head for acoustic latents. It also reads features of its own speech."""

from stretto.family.plugin import FamilyPlugin, lazy

PLUGIN = FamilyPlugin(
    name="vibevoice",
    build=lazy("stretto_vibevoice.vibevoice.family:build"),
    open_template=lazy("stretto_vibevoice.vibevoice.prompt:open_template"),
    convert="stretto_vibevoice.vibevoice.convert",
    releases="stretto_vibevoice.vibevoice:releases.json",
    recognise="stretto_vibevoice.vibevoice.recognise:recognise",
    notes="stretto_vibevoice.vibevoice:releases.md",
    architectures={"StrettoVibeVoiceForCausalLM": "stretto_vibevoice.vibevoice.model:StrettoVibeVoiceForCausalLM"},
)
