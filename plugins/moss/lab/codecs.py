"""The codec of MOSS-TTS with random weights, for the tests and measurements of all codecs."""

import torch

from lab.releases.codec_cases import CodecCase
from plugins.moss.lab.random_moss import codec_config, write_codec
from stretto_moss.codec import MossCodec, MossConfig


def moss(is_narrow: bool) -> MossCodec:
    """Return the codec; that of published size has no values."""
    with torch.device("cpu" if is_narrow else "meta"):
        return MossCodec(MossConfig.from_record(codec_config("small" if is_narrow else "published")))


CASES = {"moss": CodecCase(moss, write_codec, (2, 12))}
