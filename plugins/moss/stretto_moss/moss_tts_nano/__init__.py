"""MOSS-TTS-Nano: GPT-2's layers with rotary positions, a slot stream and 16 codebooks, and a depth transformer."""

from stretto.codecs.decoder_sizes import DecoderSize
from stretto.family.plugin import family_plugin

PLUGIN = family_plugin(
    __name__,
    recognise="stretto_moss:NANO",
    decoders={"moss_nano": DecoderSize(8.39, 8.2, state_bytes=25_370_624)},
    architectures={"StrettoMossNanoForCausalLM": f"{__name__}.model:StrettoMossNanoForCausalLM"},
)
