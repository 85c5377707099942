"""Zero-copy reader of STRING tensors for the preprocessor, limited to the number of strings of a valid request.

The stub decodes every STRING tensor of a request by `deserialize_bytes_tensor` before it calls the model. That copies
the data and takes seconds for megabytes of empty strings, blocking all other requests.
"""

import math
import struct
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

MAX_STRINGS = 64
LENGTH = struct.Struct("<I")


class Strings:
    """Strings of a tensor as memoryviews of `encoded` [n] uint8.

    A tensor with more than MAX_STRINGS strings has its original shape and None in each position.
    """

    def __init__(self, encoded: np.ndarray) -> None:
        self._encoded = encoded.data

    def reshape(self, shape: Any) -> np.ndarray:
        """Return the strings in the request's shape, which the server has checked."""
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
    """Install this reader in the stub of this process."""
    pb_utils.deserialize_bytes_tensor = Strings
