"""The codecs of MOSS-TTS with random weights, for the tests and measurements of all codecs."""

import torch

from lab.releases.codec_cases import CodecCase
from plugins.moss.lab import random_moss, random_moss_nano
from stretto_moss.codec import MossCodec, MossConfig


def moss(is_narrow: bool) -> MossCodec:
    """Return the codec; that of published size has no values."""
    with torch.device("cpu" if is_narrow else "meta"):
        return MossCodec(MossConfig.from_record(random_moss.codec_config("small" if is_narrow else "published")))


def moss_nano(is_narrow: bool) -> MossCodec:
    """Return the codec of MOSS-TTS-Nano; that of published size has no values."""
    with torch.device("cpu" if is_narrow else "meta"):
        return MossCodec(MossConfig.from_record(random_moss_nano.codec_config("small" if is_narrow else "published")))


CASES = {
    "moss": CodecCase(moss, random_moss.write_codec, (2, 12)),
    "moss_nano": CodecCase(moss_nano, random_moss_nano.write_codec, (2, 12)),
}
