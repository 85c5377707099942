"""Conversion between Triton tensors and numpy arrays, text and bytes.

Numbers use dlpack in both directions, because the server's own conversion depends on the numpy that it was built with.
"""

from typing import Any

import numpy as np
import torch
import triton_python_backend_utils as pb_utils

from stretto.errors import InvalidRequest
from stretto.triton_io.schema import TensorSpec
from stretto.triton_io.strings import MAX_STRINGS

MAX_TEXT_BYTES = 1 << 20  # largest text or JSON in bytes
NUMPY = {
    "FP32": np.dtype(np.float32),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "UINT8": np.dtype(np.uint8),
}


def read_array(request: Any, spec: TensorSpec) -> np.ndarray | None:
    """Return the numbers of a tensor, valid as long as the request; None if an optional one is absent."""
    tensor = _find(request, spec)
    if tensor is None:
        return None
    array = np.from_dlpack(tensor)
    fits = len(array.shape) == len(spec.dims) and all(
        want in (-1, got) for want, got in zip(spec.dims, array.shape, strict=True)
    )
    if array.dtype != NUMPY[spec.dtype] or not fits:
        raise InvalidRequest(spec.name, _describe(spec), f"{array.dtype} {list(array.shape)}")
    return array


def required_array(request: Any, spec: TensorSpec) -> np.ndarray:
    """Return the numbers of a required tensor."""
    array = read_array(request, spec)
    assert array is not None, spec.name
    return array


def read_scalar(request: Any, spec: TensorSpec) -> int | None:
    """Return the number in a [1] tensor."""
    array = read_array(request, spec)
    return None if array is None else int(array[0])


def read_bytes(request: Any, spec: TensorSpec) -> bytes | None:
    """Return the element of a STRING [1] tensor."""
    tensor = _find(request, spec)
    if tensor is None:
        return None
    array = tensor.as_numpy()
    if array.dtype != np.object_ or array.shape != (1,):
        raise InvalidRequest(spec.name, _describe(spec), f"{array.dtype} {list(array.shape)}")
    if len(array[0]) > MAX_TEXT_BYTES:
        raise InvalidRequest(spec.name, f"at most {MAX_TEXT_BYTES} bytes", f"{len(array[0])} bytes")
    return bytes(array[0])


def read_files(request: Any, spec: TensorSpec) -> tuple[bytes | memoryview, ...] | None:
    """Return the elements of a STRING [n] tensor without copying."""
    tensor = _find(request, spec)
    if tensor is None:
        return None
    array = tensor.as_numpy()
    if array.dtype != np.object_ or array.ndim != 1:
        raise InvalidRequest(spec.name, _describe(spec), f"{array.dtype} {list(array.shape)}")
    if len(array) > MAX_STRINGS:
        raise InvalidRequest(spec.name, f"at most {MAX_STRINGS} files", f"{len(array)} files")
    return tuple(array)


def read_record(request: Any, spec: TensorSpec) -> bytes:
    """Return the bytes of a UINT8 tensor."""
    return required_array(request, spec).tobytes()


def array_tensor(spec: TensorSpec, array: np.ndarray) -> Any:
    """Return a tensor of numbers."""
    assert array.dtype == NUMPY[spec.dtype], f"{spec.name}: {array.dtype}"
    assert array.ndim == len(spec.dims), f"{spec.name}: {array.shape}"
    # By way of torch: the stub marks a capsule as used in a way that numpy's, but not torch's, trips over and frees
    # twice. Torch wants memory that it may write to, as bytes are not.
    exportable = torch.from_numpy(np.require(array, requirements=("C", "W")))
    return pb_utils.Tensor.from_dlpack(spec.name, exportable)


def bytes_tensor(spec: TensorSpec, data: bytes) -> Any:
    """Return bytes as a UINT8 tensor."""
    return array_tensor(spec, np.frombuffer(data, np.uint8))


def text_tensor(spec: TensorSpec, text: bytes) -> Any:
    """Return UTF-8 text as a STRING [1] tensor."""
    return pb_utils.Tensor(spec.name, np.array([text], dtype=np.object_))


def _find(request: Any, spec: TensorSpec) -> Any | None:
    tensor = pb_utils.get_input_tensor_by_name(request, spec.name)
    if tensor is None and not spec.optional:
        raise InvalidRequest(spec.name, _describe(spec), "nothing")
    return tensor


def _describe(spec: TensorSpec) -> str:
    return f"{spec.dtype} {list(spec.dims)}"
