"""The codec of Fish Audio S2 with random weights, for the tests and measurements of all codecs."""

from pathlib import Path

import torch

from lab.releases.codec_cases import CodecCase
from plugins.fish_s2.lab.random_fish_s2_codec import PUBLISHED, SMALL, write_codec
from stretto.convert.conversion import ConvertedNetwork
from stretto_fish_s2.codec import FishS2Codec, FishS2Config
from stretto_fish_s2.convert_codec import codec_network


def fish_s2(is_narrow: bool) -> FishS2Codec:
    """Return the codec; that of published size has no values."""
    with torch.device("cpu" if is_narrow else "meta"):
        return FishS2Codec(FishS2Config.from_record(SMALL if is_narrow else PUBLISHED))


def convert_codec(folder: Path, kind: str = "small", seed: int = 0) -> Path:
    """Write a codec of a kind and convert it; return the checkpoint's folder, which contains `codec/`."""
    network = codec_network(write_codec(folder / "release", kind, seed))
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir()
    ConvertedNetwork.from_network(network, {}).write(checkpoint, lambda num_bytes: None)
    return checkpoint


CASES = {"fish_s2": CodecCase(fish_s2, convert_codec, (2, 21))}
