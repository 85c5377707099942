"""Codes of audio as OpusLM reads them, the latest remembered: a voice comes with every request, and a conversation
comes whole with every turn."""

from collections import OrderedDict
from hashlib import blake2b

import numpy as np

from stretto.codec.base import Codec
from stretto.families.opuslm.ssl_tokenizer import SslTokenizer

REMEMBERED = 64  # codes of half a minute take 108 kB


class HeardCodes:
    """Both tokenizers, and what they made of the audio that came last."""

    def __init__(self, codec: Codec, ssl: SslTokenizer):
        self._codec, self._ssl = codec, ssl
        self._latest: OrderedDict[bytes, np.ndarray] = OrderedDict()

    def encode(self, pcm: np.ndarray) -> np.ndarray:
        """Codes [S, T] int64 of mono `pcm` [n] float32: a semantic one and those of the codec, as far as both go."""
        key = blake2b(pcm.tobytes()).digest()
        codes = self._latest.pop(key, None)
        if codes is None:
            semantic, acoustic = self._ssl.encode(pcm), self._codec.encode(pcm)
            num_frames = min(len(semantic), acoustic.shape[1])
            codes = np.concatenate([semantic[None, :num_frames], acoustic[:, :num_frames]])
        self._latest[key] = codes
        if len(self._latest) > REMEMBERED:
            self._latest.popitem(last=False)
        return codes
