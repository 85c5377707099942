"""Pocket TTS: a small language model that generates latents with a flow head."""

from stretto.codecs.decoder_sizes import DecoderSize
from stretto.family.plugin import family_plugin

PLUGIN = family_plugin(
    __name__,
    architectures={"StrettoPocketForCausalLM": f"{__name__}.model:StrettoPocketForCausalLM"},
    decoders={"pocket": DecoderSize(8.36, 6.9)},
)
