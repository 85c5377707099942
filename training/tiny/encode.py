"""Encoding of speech shards for the language model: `shard_NNNN.pt` to `codes_NNNN.pt`."""

from pathlib import Path

import numpy as np

from stretto.codecs.tiny.codec import ResidualVQ
from training.tiny.clips import load_quantiser
from training.tiny.corpus import write_encoded
from training.tiny.encoded import Spoken, encode_utterance
from training.tiny.fit_codec import stacked_mel
from training.tiny.synthesise import Utterance, read_shard


def encode_one(utterance: Utterance, quantiser: ResidualVQ) -> Spoken | None:
    """Return the utterance with its codes, or None if it has more phonemes than frames."""
    codes = quantiser.encode(stacked_mel(utterance)).numpy().astype(np.uint8)
    return encode_utterance(utterance, codes)


def encode_shards(folder: Path, rvq: Path) -> None:
    """Encode all shards of `folder` that have not been encoded yet."""
    quantiser = load_quantiser(rvq)
    for shard in sorted(folder.glob("shard_*.pt")):
        path = folder / shard.name.replace("shard", "codes")
        if not path.exists():
            encoded = [encode_one(utterance, quantiser) for utterance in read_shard(shard)]
            write_encoded(path, [utterance for utterance in encoded if utterance is not None])
