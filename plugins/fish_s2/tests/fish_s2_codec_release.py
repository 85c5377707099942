"""Checkpoints of the codec of Fish Audio S2, converted from the random releases of `lab`."""

from pathlib import Path

from plugins.fish_s2.lab.random_fish_s2_codec import write_codec
from stretto.convert.conversion import ConvertedNetwork
from stretto_fish_s2.convert_codec import codec_network


def convert_codec(folder: Path, kind: str = "small", seed: int = 0) -> Path:
    """Write a codec of a kind and convert it; return the checkpoint's folder, which contains `codec/`."""
    network = codec_network(write_codec(folder / "release", kind, seed))
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir()
    ConvertedNetwork.from_network(network, {}).write(checkpoint, lambda num_bytes: None)
    return checkpoint
