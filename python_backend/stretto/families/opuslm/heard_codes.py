"""Codes of audio as OpusLM reads them: a semantic one and those of the codec."""

import numpy as np

from stretto.codec.base import Codec
from stretto.families.encoder_cache import CachedEncoder
from stretto.families.opuslm.ssl_tokenizer import SslTokenizer


class HeardCodes(CachedEncoder):
    """Both tokenizers, and what they made of the audio that came last: codes [S, T] int64, as far as both go."""

    def __init__(self, codec: Codec, ssl: SslTokenizer):
        def both(pcm: np.ndarray) -> np.ndarray:
            semantic, acoustic = ssl.encode(pcm), codec.encode(pcm)
            num_frames = min(len(semantic), acoustic.shape[1])
            return np.concatenate([semantic[None, :num_frames], acoustic[:, :num_frames]])

        super().__init__(both)
