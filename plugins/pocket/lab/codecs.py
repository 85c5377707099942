"""The codec of Pocket TTS with random weights, for the tests and measurements of all codecs."""

from pathlib import Path

from lab.releases.codec_cases import CodecCase, converted
from plugins.pocket.lab.random_pocket import config, write_release
from stretto_pocket.codec import PocketCodec, PocketConfig


def pocket(is_narrow: bool) -> PocketCodec:
    """Return the codec without an encoder."""
    return PocketCodec(PocketConfig.from_record(config("english" if is_narrow else "published")["mimi"]))


def write(folder: Path) -> Path:
    """Write a checkpoint of the family, which contains the codec, and return its folder."""
    return converted("pocket-tts", write_release(folder / "release", "english"))


CASES = {"pocket": CodecCase(pocket, write, (1, 12))}
