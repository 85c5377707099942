"""OpusLM's semantic codes of audio: XEUS, and the nearest k-means centre of each feature.

An optional part of a checkpoint: the folder `ssl_tokenizer/`, which `stretto convert` writes from
https://huggingface.co/espnet/xeus. A checkpoint without it accepts audio only as codes.

As in OpusLM's own data, the features are those of layer 18, counted from 0, which is the last, after the encoder's
final norm (`ESPnetHubertFeatureReader` in egs2/TEMPLATE/asr1/pyscripts/feats/ssl_feature_utils.py, recipes of OpusLM's
branch). No frame is masked. A code is the index of the nearest centre by Euclidean distance (dump_km_label.py there).
"""

import pickle
import struct
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from stretto.encoders.xeus import Xeus, XeusConfig
from stretto.errors import CheckpointError
from stretto.untrusted_files import UNPARSABLE, json_object, regular_file
from stretto.weights.loading import load_strictly

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


FOLDER, CONFIG, WEIGHTS = "ssl_tokenizer", "config.json", "model.safetensors"


class SslTokenizer(Protocol):
    """Encoder of audio to semantic codes, 50 per second."""

    def encode(self, pcm: np.ndarray) -> np.ndarray:
        """Return codes [T] int64 of mono `pcm` [n] float32 at 16 kHz.

        T is about n / 320, and 0 for less than one window.
        """
        ...


class XeusTokenizer(nn.Module):
    """XEUS with `centres` [C, H] of its features."""

    centres: Tensor

    def __init__(self, config: XeusConfig, num_codes: int) -> None:
        super().__init__()
        self.config, self.xeus = config, Xeus(config)
        self.register_buffer("centres", torch.zeros(num_codes, config.hidden))

    @torch.inference_mode()
    def encode(self, pcm: np.ndarray) -> np.ndarray:
        """Encode as `SslTokenizer.encode`; T is `config.num_frames(n)`."""
        if self.config.num_frames(len(pcm)) == 0:
            return np.zeros(0, np.int64)
        features = self.xeus(torch.from_numpy(np.asarray(pcm)).to(self.centres))
        # without the term common to all centres
        distances = self.centres.square().sum(1) - 2 * features @ self.centres.T
        return distances.argmin(1).cpu().numpy()


def load_ssl_tokenizer(checkpoint: Path, num_codes: int, device: str = "cpu") -> SslTokenizer | None:
    """Return the tokenizer of the checkpoint in a folder; None if the checkpoint has none.

    Args:
        checkpoint: Folder of the checkpoint.
        num_codes: Number of codes.
        device: Device to load it on.

    Raises:
        CheckpointError: If files or tensors are missing, unknown or of another shape.
    """
    folder = checkpoint / FOLDER
    if not folder.is_dir():
        return None
    try:
        config = XeusConfig.from_record(json_object(folder / CONFIG))
        tensors = load_file(regular_file(folder / WEIGHTS))
    except (CheckpointError, OSError, SafetensorError, *UNPARSABLE) as error:
        raise CheckpointError(f"{folder}: expected {CONFIG} and {WEIGHTS} of XEUS, got {error!r}") from error
    with torch.device("meta"):
        tokenizer = XeusTokenizer(config, num_codes)
    load_strictly(tokenizer, tensors, folder, assign=True)
    return tokenizer.eval().requires_grad_(False).to(device)
