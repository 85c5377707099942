"""Codes of audio, the latest remembered: a conversation comes whole with every turn, and a voice with every request."""

from collections import OrderedDict
from collections.abc import Callable
from hashlib import blake2b

import numpy as np

REMEMBERED = 64  # codes of half a minute take 108 kB, of the family that has the most


class RememberedCodes:
    """What a tokenizer makes of audio, and what it made of the audio that came last."""

    def __init__(self, encode: Callable[[np.ndarray], np.ndarray]):
        self._encode = encode
        self._latest: OrderedDict[bytes, np.ndarray] = OrderedDict()

    def encode(self, pcm: np.ndarray) -> np.ndarray:
        """As the tokenizer's, of mono `pcm` [n] float32."""
        key = blake2b(pcm.tobytes()).digest()
        codes = self._latest.pop(key, None)
        if codes is None:
            codes = self._encode(pcm)
        self._latest[key] = codes
        if len(self._latest) > REMEMBERED:
            self._latest.popitem(last=False)
        return codes
