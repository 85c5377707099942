"""Fish Audio S2 Pro: Qwen3 over text and frames of ten codes, and a depth transformer for nine of them."""

from stretto.codecs.decoder_sizes import DecoderSize
from stretto.family.plugin import family_plugin
from stretto.family.recognition import OneRelease

RELEASE = OneRelease("fish_s2", "Fish Audio S2", "fish_qwen3_omni", needed=("codec.pth", "tokenizer.json"))
PLUGIN = family_plugin(__name__, recognise=f"{__name__}:RELEASE", decoders={"fish_s2": DecoderSize(14.8, 145.6)})
