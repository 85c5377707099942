"""VibeVoice: Qwen2.5 with a diffusion head for acoustic latents. It also reads features of its own speech."""

from stretto.codecs.decoder_sizes import DecoderSize
from stretto.family.plugin import family_plugin

PLUGIN = family_plugin(
    __name__,
    architectures={"StrettoVibeVoiceForCausalLM": f"{__name__}.model:StrettoVibeVoiceForCausalLM"},
    decoders={"vibevoice": DecoderSize(10.46, 27.3)},
)
