"""Codes of input audio for OpusLM: a semantic code and those of the codec per frame."""

import numpy as np

from stretto.codec.base import Codec
from stretto.families.encoder_cache import CachedEncoder
from stretto.families.opuslm.ssl_tokenizer import SslTokenizer


class HeardCodes(CachedEncoder):
    """Cached encoder of audio to codes [S, T] int64 by both tokenizers; T is the shorter of both lengths."""

    def __init__(self, codec: Codec, ssl: SslTokenizer):
        def both(pcm: np.ndarray) -> np.ndarray:
            semantic, acoustic = ssl.encode(pcm), codec.encode(pcm)
            num_frames = min(len(semantic), acoustic.shape[1])
            return np.concatenate([semantic[None, :num_frames], acoustic[:, :num_frames]])

        super().__init__(both)
