"""Chatterbox T3, a language model over text followed by codes. Turbo and Nano use GPT-2 without guidance."""

from stretto.codecs.decoder_sizes import DecoderSize
from stretto.family.plugin import VECTORS, family_plugin

PLUGIN = family_plugin(
    __name__,
    architectures={"StrettoChatterboxTurboForCausalLM": "stretto.engine.models.backbones:StrettoGpt2ForCausalLM"},
    audio_encoders={"chatterbox_voice": VECTORS},
    decoders={
        "s3gen": DecoderSize(8.55, 337.8, is_whole=True),
        "s3gen_meanflow": DecoderSize(8.55, 68.1, is_whole=True),
    },
)
