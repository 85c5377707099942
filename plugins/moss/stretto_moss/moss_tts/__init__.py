"""MOSS-TTS: Qwen3 with a text stream and 32 codebooks in the delay pattern."""

from stretto.codecs.decoder_sizes import DecoderSize
from stretto.family.plugin import family_plugin

PLUGIN = family_plugin(
    __name__,
    recognise="stretto_moss:DELAY",
    decoders={"moss": DecoderSize(24.02, 51.2, state_bytes=169_435_136)},
)
