"""The codec of VoxCPM2 with random weights, for the tests and measurements of all codecs."""

from pathlib import Path

from lab.releases.codec_cases import CodecCase, converted
from plugins.voxcpm2.lab.random_voxcpm2 import VAE, write_release
from stretto_voxcpm2.audiovae import AudioVae, AudioVaeConfig


def audiovae(is_narrow: bool) -> AudioVae:
    """Return the codec for patches of four latents."""
    return AudioVae(AudioVaeConfig.from_record(VAE if is_narrow else {}, num_latents=4))


def write(folder: Path) -> Path:
    """Write a checkpoint of the family, which contains the codec, and return its folder."""
    return converted("voxcpm2", write_release(folder / "release", "plain"))


CASES = {"audiovae": CodecCase(audiovae, write, (1, 6))}
