"""NanoCodec with random weights, for the tests and measurements of all codecs."""

from pathlib import Path

import torch

from lab.releases.codec_cases import CodecCase
from plugins.magpie.lab.random_nanocodec import KINDS, write_codec
from stretto.convert.conversion import ConvertedNetwork
from stretto_magpie.codec import NanoCodec
from stretto_magpie.convert_codec import codec_network, read_config


def nanocodec(is_narrow: bool) -> NanoCodec:
    """Return the codec; that of published size has no values."""
    with torch.device("cpu" if is_narrow else "meta"):
        return NanoCodec(read_config(KINDS["small" if is_narrow else "published"], 1 if is_narrow else 2))


def convert_codec(folder: Path, kind: str = "small", stacked: int = 1) -> Path:
    """Write a codec of a kind and convert it; return the checkpoint's folder, which contains `codec/`."""
    network = codec_network(write_codec(folder / "release" / "codec.nemo", kind), stacked)
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir()
    ConvertedNetwork.from_network(network, {}).write(checkpoint, lambda num_bytes: None)
    return checkpoint


CASES = {"nanocodec": CodecCase(nanocodec, convert_codec, (2, 11))}
