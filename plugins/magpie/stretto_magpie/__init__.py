"""Magpie TTS (NVIDIA): a decoder that cross-attends to the encoded text, a local transformer, and NanoCodec."""

from stretto.codecs.decoder_sizes import DecoderSize
from stretto.family.plugin import family_plugin

PLUGIN = family_plugin(__name__, decoders={"nanocodec": DecoderSize(7.56, 52.6)})
