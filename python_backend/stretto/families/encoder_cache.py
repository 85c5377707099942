"""LRU cache of encoded audio.

A conversation is sent in full with every turn, and a voice with every request.
"""

from collections import OrderedDict
from collections.abc import Callable
from hashlib import blake2b

import numpy as np

MAX_BYTES = 32 << 20  # half a minute of codes takes at most 108 kB, in the family with the most codes
ENTRY_BYTES = 512  # overhead per entry


class CachedEncoder:
    """Encoder of audio, to codes or a vector, with an LRU cache of its results bounded in bytes.

    The cache key is a hash of the samples, so results are shared by all clients.
    """

    def __init__(self, encode: Callable[[np.ndarray], np.ndarray], max_bytes: int = MAX_BYTES):
        self._encode, self._max_bytes = encode, max_bytes
        self._latest: OrderedDict[bytes, np.ndarray] = OrderedDict()
        self._num_bytes = 0

    def encode(self, pcm: np.ndarray) -> np.ndarray:
        """Return the encoder's result for mono `pcm` [n] float32."""
        key = blake2b(pcm.tobytes()).digest()
        if key in self._latest:
            self._latest.move_to_end(key)
            return self._latest[key]
        encoded = self._latest[key] = self._encode(pcm)
        self._num_bytes += encoded.nbytes + ENTRY_BYTES
        while self._num_bytes > self._max_bytes:
            self._num_bytes -= self._latest.popitem(last=False)[1].nbytes + ENTRY_BYTES
        return encoded
