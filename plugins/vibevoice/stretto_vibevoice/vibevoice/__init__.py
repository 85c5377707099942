"""VibeVoice: Qwen2.5 with a diffusion head for acoustic latents. It also reads features of its own speech."""

from stretto.family.plugin import family_plugin

PLUGIN = family_plugin(
    __name__,
    architectures={"StrettoVibeVoiceForCausalLM": f"{__name__}.model:StrettoVibeVoiceForCausalLM"},
)
