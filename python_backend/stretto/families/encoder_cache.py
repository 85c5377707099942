"""What encoders make of audio, the latest remembered: a conversation comes whole with every turn, a voice with every
request."""

from collections import OrderedDict
from collections.abc import Callable
from hashlib import blake2b

import numpy as np

MAX_BYTES = 32 << 20  # codes of half a minute take 108 kB, of the family that has the most
ENTRY_BYTES = 512  # beside them


class CachedEncoder:
    """An encoder of audio, into codes or a vector, and what it made of the audio that came last, in so much memory.

    Audio is known by what it contains: whoever asks for it has it.
    """

    def __init__(self, encode: Callable[[np.ndarray], np.ndarray], max_bytes: int = MAX_BYTES):
        self._encode, self._max_bytes = encode, max_bytes
        self._latest: OrderedDict[bytes, np.ndarray] = OrderedDict()
        self._num_bytes = 0

    def encode(self, pcm: np.ndarray) -> np.ndarray:
        """As the encoder's, of mono `pcm` [n] float32."""
        key = blake2b(pcm.tobytes()).digest()
        if key in self._latest:
            self._latest.move_to_end(key)
            return self._latest[key]
        encoded = self._latest[key] = self._encode(pcm)
        self._num_bytes += encoded.nbytes + ENTRY_BYTES
        while self._num_bytes > self._max_bytes:
            self._num_bytes -= self._latest.popitem(last=False)[1].nbytes + ENTRY_BYTES
        return encoded
