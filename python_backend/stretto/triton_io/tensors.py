"""Tensors of the ensemble's models: schemas, conversion from and to arrays, text and prompts, and authentication.

The module also reads the parameters of Triton models.
"""

import json
import math
import os
import struct
from base64 import b64decode, urlsafe_b64encode
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from stretto.config import parse_parameter
from stretto.errors import InvalidRequest, shown
from stretto.family.served import speaking_folder
from stretto.records.flow_address import FlowAddress
from stretto.records.prompt import AudioPart, Prompt, Resumption, TextPart
from stretto.triton_io.seal import Seal


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Triton tensor.

    Attributes:
        dtype: Triton's data type, without the prefix TYPE_.
        dims: Shape; -1 for any length.
        meaning: Content and unit.
    """

    name: str
    dtype: str
    dims: tuple[int, ...]
    meaning: str
    optional: bool = False


@dataclass(frozen=True, slots=True)
class ModelSchema:
    """Inputs and outputs of a model in the model repository.

    Attributes:
        is_decoupled: True if a request may have any number of responses.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    is_decoupled: bool = False


TEXT = TensorSpec("text", "STRING", (1,), "text to speak, or the question; UTF-8", optional=True)
AUDIO = TensorSpec("audio", "STRING", (-1,), "contents of audio files, one per turn", optional=True)
PCM_IN = TensorSpec("pcm_in", "FP32", (-1,), "mono samples in [-1, 1] at sample_rate", optional=True)
SAMPLE_RATE = TensorSpec("sample_rate", "INT32", (1,), "Hz, of pcm_in", optional=True)
MESSAGES = TensorSpec("messages", "STRING", (1,), "JSON list of turns of a dialogue", optional=True)
IMAGE = TensorSpec("image", "STRING", (-1,), "contents of image files, one per turn", optional=True)
TASK = TensorSpec("task", "STRING", (1,), "task of the family; default: the first", optional=True)
OPTIONS = TensorSpec("options", "STRING", (1,), "JSON: sampling, limits, chunking", optional=True)
SESSION = TensorSpec("session", "STRING", (1,), "JSON: the open streamed text that `text` continues", optional=True)

# Inputs of clients of other Triton servers that clone voices; these have a batch dimension of 1.
REFERENCE_WAV = TensorSpec("reference_wav", "FP32", (1, -1), "mono samples of the voice at 16 kHz", optional=True)
REFERENCE_WAV_LEN = TensorSpec("reference_wav_len", "INT32", (1, 1), "samples before the padding", optional=True)
REFERENCE_TEXT = TensorSpec("reference_text", "STRING", (1, 1), "words of the recording", optional=True)
TARGET_TEXT = TensorSpec("target_text", "STRING", (1, 1), "text to speak; UTF-8", optional=True)

ROWS = TensorSpec(
    "rows", "INT32", (-1, -1), "[P, S] token ids of the prompt; absent in a part of a streamed text", optional=True
)
PROMPT = TensorSpec(
    "prompt",
    "UINT8",
    (-1,),
    "MessagePack with a MAC: rest of the prompt, or a part of a streamed text; absent in a command",
    optional=True,
)
FEATURES = TensorSpec("features", "FP32", (-1, -1), "[F, M] log-mel frames of all audio of the prompt", optional=True)
PATCHES = TensorSpec("patches", "FP32", (-1, -1), "[F, M] patches of all images of the prompt", optional=True)
ADAPTERS = TensorSpec("adapters", "STRING", (1,), "JSON: a command that loads or unloads an adapter", optional=True)
CODES = TensorSpec("codes", "INT32", (-1, -1), "[K, T] codes of new frames; absent in a text-only chunk", optional=True)
CHUNK = TensorSpec("chunk", "UINT8", (-1,), "MessagePack with a MAC: the chunk, its utterance, and its flow slot")

PCM = TensorSpec("pcm", "FP32", (-1,), "mono samples in [-1, 1]; absent without samples, or with pcm16")
PCM16 = TensorSpec("pcm16", "INT16", (-1,), "mono 16-bit samples, if the options select them instead of pcm")
EVENT = TensorSpec("event", "STRING", (1,), "JSON: metadata of this response")

REQUEST = (TEXT, AUDIO, PCM_IN, SAMPLE_RATE, MESSAGES, TASK, OPTIONS, SESSION, IMAGE)
CLONING_REQUEST = (REFERENCE_WAV, REFERENCE_WAV_LEN, REFERENCE_TEXT, TARGET_TEXT)
RESPONSE = (PCM, PCM16, EVENT)

MODELS = {
    "speech": ModelSchema(REQUEST, RESPONSE, is_decoupled=True),
    "preprocessor": ModelSchema((*REQUEST, *CLONING_REQUEST), (ROWS, PROMPT, FEATURES, PATCHES)),
    "language_model": ModelSchema((ROWS, PROMPT, FEATURES, PATCHES, ADAPTERS), (CODES, CHUNK), is_decoupled=True),
    "acoustic_decoder": ModelSchema((CODES, CHUNK), RESPONSE, is_decoupled=True),
}


MAX_STRINGS = 64
LENGTH = struct.Struct("<I")


class Strings:
    """Lazy reader for a STRING tensor, whose elements are memoryviews into `encoded`.

    `encoded` is Triton's serialisation of the tensor, uint8 [n]. If there are more than MAX_STRINGS strings, all
    elements are None.
    """

    def __init__(self, encoded: np.ndarray) -> None:
        self._encoded = encoded.data

    def reshape(self, shape: Any) -> np.ndarray:
        """Return the strings in the shape given by the request; the server has checked its size."""
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
    """Make this process's stub read STRING tensors with `Strings`, without copying them."""
    pb_utils.deserialize_bytes_tensor = Strings


MAX_TEXT_BYTES = 1 << 20  # largest text or JSON in bytes
NUMPY = {
    "FP32": np.dtype(np.float32),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "UINT8": np.dtype(np.uint8),
}


def read_array(request: Any, spec: TensorSpec) -> np.ndarray | None:
    """Return a numeric tensor as an array, valid only as long as the request exists; None if it is missing."""
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


def read_scalar(request: Any, spec: TensorSpec) -> int | None:
    """Return the number in an optional tensor of one element, or None if the tensor is missing."""
    array = read_array(request, spec)
    return None if array is None else int(array.item())


def read_bytes(request: Any, spec: TensorSpec) -> bytes | None:
    """Return the element of a STRING tensor of one element, or None if the optional tensor is missing."""
    tensor = _find(request, spec)
    if tensor is None:
        return None
    array = tensor.as_numpy()
    if array.dtype != np.object_ or array.shape != spec.dims:
        raise InvalidRequest(spec.name, _describe(spec), f"{array.dtype} {list(array.shape)}")
    element = array.item()
    if len(element) > MAX_TEXT_BYTES:
        raise InvalidRequest(spec.name, f"at most {MAX_TEXT_BYTES} bytes", f"{len(element)} bytes")
    return bytes(element)


def read_files(request: Any, spec: TensorSpec) -> tuple[bytes | memoryview, ...] | None:
    """Return the elements of an optional STRING [n] tensor, uncopied, or None if it is missing."""
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
    """Return the bytes of a UINT8 tensor, which must not be missing even if it is optional in other requests."""
    array = read_array(request, spec)
    if array is None:
        raise InvalidRequest(spec.name, _describe(spec), "none")
    return array.tobytes()


def array_tensor(spec: TensorSpec, array: np.ndarray) -> Any:
    assert array.dtype == NUMPY[spec.dtype], f"{spec.name}: {array.dtype}"
    assert array.ndim == len(spec.dims), f"{spec.name}: {array.shape}"
    # Not through DLPack: because of how the stub marks a capsule as used, numpy frees it twice. torch does not, but it
    # takes seconds to import.
    return pb_utils.Tensor(spec.name, np.ascontiguousarray(array))


def bytes_tensor(spec: TensorSpec, data: bytes) -> Any:
    return array_tensor(spec, np.frombuffer(data, np.uint8))


def event_tensor(record: bytes) -> Any:
    """Return an event record in UTF-8 as a STRING [1] tensor."""
    return pb_utils.Tensor(EVENT.name, np.array([record], dtype=np.object_))


def _find(request: Any, spec: TensorSpec) -> Any | None:
    tensor = pb_utils.get_input_tensor_by_name(request, spec.name)
    if tensor is None and not spec.optional:
        raise InvalidRequest(spec.name, _describe(spec), "none")
    return tensor


def _describe(spec: TensorSpec) -> str:
    return f"{spec.dtype} {list(spec.dims)}"


def read_inputs(request: Any) -> dict[str, Any]:
    """Return each ensemble input of a request by name, before parsing; None if missing."""
    return {
        "text": read_bytes(request, TEXT),
        "audio": read_files(request, AUDIO),
        "pcm_in": read_array(request, PCM_IN),
        "sample_rate": read_scalar(request, SAMPLE_RATE),
        "messages": read_bytes(request, MESSAGES),
        "task": read_bytes(request, TASK),
        "options": read_bytes(request, OPTIONS),
        "session": read_bytes(request, SESSION),
        "image": read_files(request, IMAGE),
    }


def read_cloning_inputs(request: Any) -> dict[str, Any]:
    """Return each input of CLONING_REQUEST by name, before parsing; None if missing."""
    return {
        "reference_wav": read_array(request, REFERENCE_WAV),
        "reference_wav_len": read_scalar(request, REFERENCE_WAV_LEN),
        "reference_text": read_bytes(request, REFERENCE_TEXT),
        "target_text": read_bytes(request, TARGET_TEXT),
    }


class ModelParameters:
    """Parameters of a Triton model, which are strings in config.pbtxt.

    Paths are relative to the model's folder. If a parameter is missing or invalid, all methods raise a ValueError with
    the parameter's name.

    Args:
        args: Arguments of the model's `initialize`.
    """

    def __init__(self, args: dict[str, Any]) -> None:
        self._folder = Path(args["model_repository"])
        self._instance_kind = args["model_instance_kind"]
        self._device_id = args["model_instance_device_id"]
        self.strings: dict[str, str] = {
            name: value["string_value"] for name, value in json.loads(args["model_config"])["parameters"].items()
        }

    def number(self, name: str, most: int | None = None) -> int:
        """Return the parameter as an integer of at least 1 and, unless it is None, at most `most`."""
        value: int = parse_parameter(name, int, self._text(name))
        if value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}")
        if most is not None and value > most:
            raise ValueError(f"{name} must be <= {most}, got {value}")
        return value

    def seconds(self, name: str) -> float:
        """Return the parameter as a duration of at least 0, in seconds."""
        value: float = parse_parameter(name, float, self._text(name))
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name} must be >= 0, got {value}")
        return value

    def path(self, name: str) -> Path:
        """Return the parameter as a path, relative to the model's folder unless it is absolute."""
        # normalised without resolving links, because the folder may be a link
        return Path(os.path.normpath(self._folder / self._text(name)))

    @property
    def device(self) -> str:
        """Device of the model instance: `cuda:N` for KIND_GPU on GPU N, else `cpu`."""
        return f"cuda:{self._device_id}" if self._instance_kind == "GPU" else "cpu"

    def speaking_checkpoint(self) -> Path:
        """Return the checkpoint of the model that generates frames; raise CheckpointError if its family is unknown."""
        return speaking_folder(self.path("checkpoint"))

    def _text(self, name: str) -> str:
        if name not in self.strings:
            raise ValueError(f"{name} is missing from the parameters in config.pbtxt")
        return self.strings[name]


# Names for the MAC, other than the prompt tensor.
PART = "part"
AUDIO_PART = "audio part"
RESUMPTION = "resumption"
SESSION_NAME = "session"


def write_prompt(prompt: Prompt, seal: Seal) -> list[Any]:
    """Return the authenticated tensors of `prompt`."""
    features = prompt.features
    patches = prompt.patches
    record = prompt.to_bytes()
    sealed = seal.close(PROMPT.name, record, prompt.rows, features, patches)
    tensors = [array_tensor(ROWS, prompt.rows), bytes_tensor(PROMPT, sealed)]
    optional = [(FEATURES, features), (PATCHES, patches)]
    return [*tensors, *(array_tensor(spec, array) for spec, array in optional if array is not None)]


def write_part(sent: TextPart | AudioPart | Resumption, seal: Seal) -> list[Any]:
    """Return the authenticated tensor of a part or a resumption."""
    name = {TextPart: PART, AudioPart: AUDIO_PART, Resumption: RESUMPTION}[type(sent)]
    return [bytes_tensor(PROMPT, seal.close(name, sent.to_bytes()))]


SLOT = struct.Struct("<IQ")  # flow-table slot of a live session's utterance, and the slot's generation


def session_name(flow: FlowAddress, seal: Seal) -> str:
    """Return the name of a live session: its slot in the acknowledgement table, with a MAC.

    The preprocessor encodes audio only for sessions that hold their slot.
    """
    return urlsafe_b64encode(seal.close(SESSION_NAME, SLOT.pack(flow.slot, flow.generation))).decode()


def session_slot(name: str, seal: Seal) -> tuple[int, int]:
    """Return the slot and generation in a live session's name; refuse a name that this server has not created."""
    try:
        slot, generation = SLOT.unpack(seal.open(SESSION_NAME, b64decode(name, b"-_", validate=True)))
    except (InvalidRequest, ValueError, struct.error):
        raise unknown_session(name) from None
    return slot, generation


def unknown_session(name: str, is_resumed: bool = False) -> InvalidRequest:
    """Return the error for a part, or for the resumption, of a live session that does not exist or has ended."""
    kept = " (it is kept for options.resume_s after a lost connection)" if is_resumed else ""
    return InvalidRequest("session.id", f"the id of an open session{kept}", shown(name))


def read_prompt(request: Any, seal: Seal) -> Prompt | TextPart | AudioPart | Resumption:
    """Return the prompt, text part, audio part or resumption in a request from this server's preprocessor.

    If the request is malformed, or from another sender, raise InvalidRequest.
    """
    rows, features, patches = (read_array(request, spec) for spec in (ROWS, FEATURES, PATCHES))
    if rows is None:
        sealed = read_record(request, PROMPT)
        for name, part_type in ((AUDIO_PART, AudioPart), (RESUMPTION, Resumption)):
            with suppress(InvalidRequest):
                return part_type.from_bytes(PROMPT.name, seal.open(name, sealed))
        return TextPart.from_bytes(PROMPT.name, seal.open(PART, sealed))
    rows = rows.copy()
    features, patches = (None if array is None else array.copy() for array in (features, patches))
    record = seal.open(PROMPT.name, read_record(request, PROMPT), rows, features, patches)
    return Prompt.from_bytes(PROMPT.name, record, rows, features, patches)
