"""The codec of Chatterbox with random weights, for the tests and measurements of all codecs."""

from dataclasses import replace

from lab.releases.codec_cases import CodecCase
from plugins.chatterbox.lab.random_chatterbox import convert
from plugins.chatterbox.lab.random_s3gen import NARROW, WIDE, WIDE_MEANFLOW
from stretto_chatterbox.s3gen import S3GenCodec, S3GenConfig

VOICE_TOKENS = 150
COUNTED_TOKENS = 75  # 3 s


def s3gen(is_narrow: bool) -> S3GenCodec:
    """Return the codec with one voice."""
    return S3GenCodec(replace(NARROW if is_narrow else WIDE, voices=(VOICE_TOKENS,)))


def _counted(config: S3GenConfig) -> S3GenCodec:
    return S3GenCodec(replace(config, voices=(COUNTED_TOKENS,))).eval()


COUNTED = {"s3gen": lambda: _counted(WIDE), "s3gen_meanflow": lambda: _counted(WIDE_MEANFLOW)}
CASES = {"s3gen": CodecCase(s3gen, convert, (4, 25), COUNTED)}
