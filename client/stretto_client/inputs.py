"""Input tensors of a request. All inputs are optional; absent ones are not sent."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from tritonclient.grpc import InferInput

from stretto_client.sharing import Sharing

Audio = str | Path | bytes | tuple[np.ndarray, int]


def strings(**values: str | bytes | None) -> list[InferInput]:
    """Return a STRING [1] tensor for each value that is not None."""
    return [
        _tensor(name, np.array([value], np.object_), "BYTES") for name, value in values.items() if value is not None
    ]


def audio_inputs(*audio: Audio, sharing: Sharing | None = None) -> list[InferInput]:
    """Return the tensors of audio inputs.

    Args:
        audio: Paths or bytes of files, and at most once (samples [n] in [-1, 1], rate in Hz).
        sharing: Shared memory for the tensors; None to send them in the request.

    Raises:
        ValueError: Samples are not mono floating-point numbers, or there is more than one array of them.
    """
    sampled = [each for each in audio if isinstance(each, tuple)]
    named = [each for each in audio if not isinstance(each, tuple)]
    files = [each if isinstance(each, bytes) else Path(each).read_bytes() for each in named]
    tensors = [_tensor("audio", np.array(files, np.object_), "BYTES", sharing)] if files else []
    if len(sampled) > 1:
        raise ValueError(f"expected files and at most one array of samples, got {len(sampled)}")
    for pcm, sample_rate in sampled:
        if pcm.ndim != 1 or not np.issubdtype(pcm.dtype, np.floating):
            raise ValueError(f"expected mono floating-point samples [n], got {pcm.shape} {pcm.dtype}")
        rate = _tensor("sample_rate", np.array([sample_rate], np.int32), "INT32")
        tensors += [_tensor("pcm_in", pcm.astype(np.float32), "FP32", sharing), rate]
    return tensors


def given(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that are not None."""
    return {key: value for key, value in options.items() if value is not None}


def options_json(options: dict[str, Any]) -> str | None:
    """Return the options that are not None as JSON; None if there are none."""
    return json.dumps(given(options)) if given(options) else None


def _tensor(name: str, array: np.ndarray, dtype: str, sharing: Sharing | None = None) -> InferInput:
    tensor = InferInput(name, list(array.shape), dtype)
    if sharing is None:
        tensor.set_data_from_numpy(array)
        return tensor
    # Triton's string format: length in 4 bytes, then the string.
    content = b"".join(struct.pack("<I", len(each)) + each for each in array) if dtype == "BYTES" else array.tobytes()
    data = np.frombuffer(content, np.uint8)
    region = sharing.region(len(data))
    region.write(data)
    tensor.set_shared_memory(region.name, len(data))
    return tensor
