"""The codec of CosyVoice 3 with random weights, for the tests and measurements of all codecs."""

import torch

from lab.releases.codec_cases import CodecCase
from plugins.cosyvoice3.lab.random_cosyvoice3 import NARROW, WIDE, write_codec
from stretto.codecs.recorded_voices import FlowVoice
from stretto_cosyvoice3.codec import CosyVoice3Codec, prepared

VOICE_TOKENS = 75  # 3 s


def cosyvoice3(is_narrow: bool) -> CosyVoice3Codec:
    """Return the codec."""
    return prepared(CosyVoice3Codec(NARROW if is_narrow else WIDE))


def add_voice(codec: CosyVoice3Codec) -> int:
    """Add a voice of 3 s, and return its number."""
    voice = FlowVoice(VOICE_TOKENS, codec.config.mels, codec.config.speaker)
    codec.recorded.voices[1] = voice.to(torch.device("meta"))
    return 1


CASES = {"cosyvoice3": CodecCase(cosyvoice3, write_codec, (4, 25), add_voice=add_voice)}
