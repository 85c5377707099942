"""STRING tensors as the preprocessor reads them: without a copy, and no more elements than any request has.

The stub reads every STRING tensor of a request, before it calls the model, by `deserialize_bytes_tensor` of its own
module: that copies what it reads, and takes seconds over some megabytes of empty strings, while all others wait.
"""

import math
import struct
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

MAX_STRINGS = 64
LENGTH = struct.Struct("<I")


class Strings:
    """Strings of a tensor, each a memoryview of the bytes `encoded` [n] uint8 that they came in.

    A tensor with more of them than MAX_STRINGS has the shape it came with and, at each place, None.
    """

    def __init__(self, encoded: np.ndarray) -> None:
        self._encoded = encoded.data

    def reshape(self, shape: Any) -> np.ndarray:
        """The strings in the shape that the request says, and the server has checked."""
        number = math.prod(shape)
        if number > MAX_STRINGS:
            return np.broadcast_to(np.array(None, object), shape)
        strings = np.empty(number, object)
        start = 0
        for index in range(number):
            start += LENGTH.size
            end = start + LENGTH.unpack_from(self._encoded, start - LENGTH.size)[0]
            strings[index] = self._encoded[start:end]
            start = end
        return strings.reshape(shape)


def install() -> None:
    """Have the stub of this process read strings so."""
    pb_utils.deserialize_bytes_tensor = Strings
