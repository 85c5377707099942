"""The codec of IndexTTS-2 with random weights, for the tests and measurements of all codecs."""

from pathlib import Path

from lab.releases.codec_cases import CodecCase
from plugins.indextts2.lab import random_acoustics
from stretto.convert.conversion import ConvertedNetwork
from stretto_indextts2.codec import IndexTtsCodec, num_frames
from stretto_indextts2.convert_codec import codec_network

VOICE_TOKENS = 150  # 3 s


def indextts2(is_narrow: bool) -> IndexTtsCodec:
    """Return the codec."""
    return IndexTtsCodec(random_acoustics.NARROW if is_narrow else random_acoustics.WIDE)


def add_voice(codec: IndexTtsCodec) -> int:
    """Add a voice of 3 s, and return its number."""
    return codec.add_voice(*random_acoustics.voice(1, VOICE_TOKENS, num_frames(VOICE_TOKENS), codec.config))


def write_codec(folder: Path) -> Path:
    """Convert the decoder of a narrow release to `codec/` in a folder, and return the folder."""
    release = folder / "release"
    release.mkdir()
    random_acoustics.write_networks(release)
    network = codec_network(release, random_acoustics.latents_tensors(), heads=2, flow_heads=2)
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir()
    ConvertedNetwork.from_network(network, {}).write(checkpoint, lambda num_bytes: None)
    return checkpoint


CASES = {"indextts2": CodecCase(indextts2, write_codec, (4, 25), add_voice=add_voice)}
