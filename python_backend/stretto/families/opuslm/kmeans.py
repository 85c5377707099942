"""Reader of the centres of a scikit-learn k-means model written by joblib. No code in the file is executed.

A pickle names functions that its reader calls. Here each named function becomes a `Record` of its arguments and its
state, and nothing is called; neither scikit-learn nor joblib is needed. joblib puts the bytes of arrays between a
pickle's opcodes (https://github.com/joblib/joblib, joblib/numpy_pickle.py). They follow the state of a
NumpyArrayWrapper: since joblib 1.1 a byte with the length of the padding, the padding, then the array.
"""

import pickle
import struct
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np

from stretto.errors import CheckpointError
from stretto.untrusted_files import UNPARSABLE, regular_file

WRAPPER, CENTRES = "joblib.numpy_pickle.NumpyArrayWrapper", "cluster_centers_"
NUMBERS = frozenset({"f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"})  # names of dtypes in numpy


class Record:
    """Pickled object: the `name` of the function that would construct it, its arguments and its state."""

    name = ""

    def __init__(self, *args: Any, **kwargs: Any):
        self.args = args
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class RecordReader(pickle._Unpickler):
    """Unpickler of joblib's files to Records and arrays."""

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: BinaryIO):
        super().__init__(file)
        self._file = file

    def find_class(self, module: str, name: str) -> type[Record]:
        """Return a subclass of Record, whatever is requested."""
        return type(name, (Record,), {"name": f"{module}.{name}"})

    def load_build(self) -> None:
        """Set an object's state; replace the wrapper of an array by the array that follows it."""
        super().load_build()  # type: ignore[misc]
        stack: list[Any] = self.stack  # type: ignore[attr-defined]
        if isinstance(stack[-1], Record) and stack[-1].name == WRAPPER:
            stack[-1] = _read_array(self._file, stack[-1].state)

    dispatch[pickle.BUILD[0]] = load_build


def _read_array(file: BinaryIO, state: dict[str, Any]) -> np.ndarray:
    dtype, shape = _dtype(state["dtype"]), tuple(state["shape"])
    if state.get("numpy_array_alignment_bytes") is not None:
        file.read(file.read(1)[0])
    num_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    array = np.frombuffer(file.read(num_bytes), dtype)
    return array.reshape(shape[::-1]).T if state["order"] == "F" else array.reshape(shape)


def _dtype(record: Record) -> np.dtype:
    """Return the dtype of a Record of numpy.dtype, whose state has the byte order at index 1."""
    name, order = record.args[0], record.state[1]
    if record.name != "numpy.dtype" or name not in NUMBERS:
        raise ValueError(f"expected arrays of numbers, got {record.name} {name!r}")
    return np.dtype(name).newbyteorder(order)


def read_centres(path: Path) -> np.ndarray:
    """Return centres [C, H] float32 of the k-means model in a file; CheckpointError if it has none."""
    try:
        with regular_file(path).open("rb") as file:
            if file.peek(1)[:1] != pickle.PROTO:
                raise pickle.UnpicklingError("another kind of file")
            model = RecordReader(file).load()
        centres = model.state[CENTRES]
        if centres.ndim != 2 or not np.isfinite(centres).all():
            raise ValueError(f"{CENTRES} of shape {list(centres.shape)} are not finite rows")
    except (OSError, EOFError, MemoryError, pickle.UnpicklingError, struct.error) as error:
        expected = "a k-means model as joblib writes it, uncompressed"
        raise CheckpointError(f"{path}: expected {expected}, got {error!r}") from error
    except UNPARSABLE as error:
        raise CheckpointError(f"{path}: expected a k-means model with {CENTRES}, got {error!r}") from error
    return np.array(centres, np.float32, order="C")
