"""Validation of serialised inference requests.

WORKAROUND(triton): Triton, and the numpy code of its stubs, trust tensor shapes. A negative dimension, or a product of
dimensions that overflows, crashes a stub. Each tensor must therefore have exactly the size that its shape implies.
Tensor contents are measured but not copied.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from google.protobuf.message import DecodeError
from tritonclient.grpc.service_pb2 import ModelInferRequest

from stretto.disconnects import HOST, STREAM
from stretto.errors import INVALID

MAX_HEAD_BYTES = 1 << 20
MAX_FIELDS = 256  # including fields of tensors; a request with all inputs of all our models has fewer than half as many
MAX_ID = 1024  # characters of an id or a name; each response repeats both, and Triton buffers unread responses
# each model of the ensemble parses them, the decoder for each chunk
MAX_PARAMETERS = 32
MAX_PARAMETER_BYTES = 4096
MAX_RANK = 8
MAX_ELEMENTS = 1 << 31
MAX_STRINGS = 4096  # each becomes a Python object
SHOWN = 64  # characters of a name shown in an error

# Permitted wire types of each field number (grpc_service.proto; protobuf, encoding).
VARINT = 0
LENGTH_DELIMITED = 2
RAW_CONTENTS = 7
Kinds = Mapping[int, tuple[int, ...]]
REQUEST: Kinds = dict.fromkeys(range(1, 8), (LENGTH_DELIMITED,))
OUTPUT: Kinds = dict.fromkeys(range(1, 3), (LENGTH_DELIMITED,))
INPUT: Kinds = {**dict.fromkeys(range(1, 6), (LENGTH_DELIMITED,)), 3: (LENGTH_DELIMITED, VARINT)}  # 3: unpacked shape
TENSORS = {5: INPUT, 6: OUTPUT}

Field = tuple[int, int, int, int]  # number; offsets of its tag, its content and the next field

# Bytes per element; a string is preceded by its length.
SIZES = {"BOOL": 1, "UINT8": 1, "INT8": 1, "UINT16": 2, "INT16": 2, "FP16": 2, "BF16": 2}
SIZES |= {"UINT32": 4, "INT32": 4, "FP32": 4, "UINT64": 8, "INT64": 8, "FP64": 8}
STRING = "BYTES"
STRING_HEAD = 4


class BadRequest(Exception):
    """Request that must not reach Triton; the message names the field, valid values and the value given.

    Attributes:
        request_id: Id set by the client; empty if it could not be read.
        category: Prefix of the client's error message, as in the models' errors.
    """

    def __init__(self, message: str, request_id: str = "", category: str = INVALID) -> None:
        super().__init__(message)
        self.request_id = request_id
        self.category = category

    @property
    def client_message(self) -> str:
        return f"{self.category}: {self}"


@dataclass(frozen=True, slots=True)
class InferRequest:
    """Parsed request without tensor contents.

    Attributes:
        head: The request without `raw_input_contents`.
        raw_sizes: Size of each entry of `raw_input_contents`, in bytes.
    """

    head: ModelInferRequest
    raw_sizes: tuple[int, ...]


def read_infer_request(data: bytes) -> InferRequest:
    """Parse and validate a serialised ModelInferRequest.

    If it is malformed or exceeds a limit, or a tensor's size does not match its shape, raise BadRequest.
    """
    head = bytearray()
    raw_sizes = []
    for number, start, content, end in _few_fields(data):
        if number == RAW_CONTENTS:
            raw_sizes.append(end - content)
            continue
        if len(head) + end - start > MAX_HEAD_BYTES:
            raise BadRequest(f"request: expected at most {MAX_HEAD_BYTES} bytes besides raw_input_contents, got more")
        head += data[start:end]
    try:
        request = InferRequest(ModelInferRequest.FromString(bytes(head)), tuple(raw_sizes))
    except DecodeError:
        raise BadRequest("request: expected a ModelInferRequest, got bytes that cannot be parsed") from None
    for name in ("id", "model_name", "model_version"):
        if (length := len(getattr(request.head, name))) > MAX_ID:
            raise BadRequest(f"{name}: expected at most {MAX_ID} characters, got {length} characters")
    try:
        _check_names(request.head)
        _check_parameters(request.head)
        _check_tensors(request)
    except BadRequest as error:
        raise BadRequest(str(error), request.head.id) from None
    return request


def with_origin(data: bytes, host: str, stream: int = 0) -> bytes:
    """Return the request with parameters for its host and stream (0: none), which override the client's parameters.

    They are appended as a second message: concatenated protobuf messages are merged, and the last map entry for each
    key wins (protobuf, encoding).
    """
    last = ModelInferRequest()
    last.parameters[HOST].string_param = host
    last.parameters[STREAM].string_param = str(stream)
    return data + last.SerializeToString()


def _few_fields(data: bytes) -> Iterator[Field]:
    """Yield the request's fields; raise BadRequest if there are more than MAX_FIELDS, including those of tensors.

    A field may have only two bytes, but reading it takes time in which the event loop serves no other call.
    """
    came = 0
    for field in _fields(data, 0, len(data), REQUEST):
        number, _, content, end = field
        inner: Iterable[Field] = _fields(data, content, end, TENSORS[number]) if number in TENSORS else ()
        came += 1 + sum(1 for _ in islice(inner, MAX_FIELDS))
        if came > MAX_FIELDS:
            raise BadRequest(f"request: expected at most {MAX_FIELDS} fields, those of its tensors included, got more")
        yield field


def _fields(data: bytes, at: int, end: int, kinds: Kinds) -> Iterator[Field]:
    """Yield the fields of the message between offsets `at` and `end`; raise BadRequest for unknown ones."""
    while at < end:
        number = data[at] >> 3
        wire_type = data[at] & 7
        if wire_type not in kinds.get(number, ()):
            raise BadRequest(f"request: expected a ModelInferRequest, got field {number} of type {wire_type}")
        value, content = _varint(data, at + 1)
        size = value if wire_type == LENGTH_DELIMITED else 0
        if content + size > end:
            raise BadRequest(f"request: expected {size} bytes of field {number}, got {end - content}")
        yield number, at, content, content + size
        at = content + size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the varint at offset `at`, and the offset after it."""
    value = 0
    for index, byte in enumerate(data[at : at + 10]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, at + index + 1
    raise BadRequest("request: expected a ModelInferRequest, got an unterminated varint")


def _check_names(head: ModelInferRequest) -> None:
    """Raise BadRequest for a text with a NUL character, at which Triton would cut the text."""
    texts = [("id", head.id), ("model_name", head.model_name), ("model_version", head.model_version)]
    texts += [("parameters", value.string_param) for value in head.parameters.values()]
    texts += [("inputs", tensor.datatype) for tensor in head.inputs]
    for field, tensors in (("inputs", head.inputs), ("outputs", head.outputs)):
        texts += [(field, tensor.name) for tensor in tensors]
    for record in (head, *head.inputs, *head.outputs):
        texts += [("parameters", name) for name in record.parameters]
    for field, text in texts:
        if "\0" in text:
            raise BadRequest(f"{field}: expected text without NUL, got {text[:SHOWN]!r}")


def _check_parameters(head: ModelInferRequest) -> None:
    num_bytes = sum(len(name.encode()) + value.ByteSize() for name, value in head.parameters.items())
    if len(head.parameters) > MAX_PARAMETERS or num_bytes > MAX_PARAMETER_BYTES:
        expected = f"at most {MAX_PARAMETERS} parameters and {MAX_PARAMETER_BYTES} bytes in all"
        raise BadRequest(f"parameters: expected {expected}, got {len(head.parameters)} of {num_bytes} bytes")


def _check_tensors(request: InferRequest) -> None:
    for output in request.head.outputs:
        if "classification" in output.parameters:  # WORKAROUND(triton server 2.51): it crashes for strings
            raise BadRequest(f"outputs.{output.name[:SHOWN]}: expected no classification, which no model here supports")
    raw_sizes = iter(request.raw_sizes)
    for tensor in request.head.inputs:
        name = f"inputs.{tensor.name[:SHOWN]}"
        count = _num_elements(name, tensor.shape)
        if "shared_memory_region" in tensor.parameters:
            size = tensor.parameters["shared_memory_byte_size"].int64_param
            if min(size, tensor.parameters["shared_memory_offset"].int64_param) < 0:
                raise BadRequest(f"{name}: expected an offset and a size in shared memory >= 0, got a negative one")
        elif tensor.HasField("contents"):
            _check_contents(name, tensor, count)
            continue
        else:
            size = next(raw_sizes, -1)
            if size < 0:
                raise BadRequest(
                    f"{name}: expected its bytes in raw_input_contents, got {len(request.raw_sizes)} entries"
                )
        _check_size(name, tensor.datatype, count, size)
    if next(raw_sizes, None) is not None:
        raise BadRequest(f"raw_input_contents: expected one entry for each input, got {len(request.raw_sizes)}")


def _num_elements(name: str, shape: list[int]) -> int:
    if len(shape) > MAX_RANK:
        raise BadRequest(f"{name}: expected a shape of at most {MAX_RANK} dimensions, got {len(shape)} dimensions")
    if min(shape, default=0) < 0 or math.prod(size or 1 for size in shape) >= MAX_ELEMENTS:  # numpy also counts 0 as 1
        raise BadRequest(f"{name}: expected a shape of fewer than 2^31 elements, got {list(shape)}")
    return math.prod(shape)


def _check_contents(name: str, tensor: ModelInferRequest.InferInputTensor, count: int) -> None:
    came = sum(len(values) for _, values in tensor.contents.ListFields())
    if len(tensor.contents.bytes_contents) > MAX_STRINGS:
        raise BadRequest(f"{name}: expected at most {MAX_STRINGS} strings, got {came} strings")
    if came != count:
        raise BadRequest(f"{name}: expected {count} elements for shape {list(tensor.shape)}, got {came}")


def _check_size(name: str, datatype: str, count: int, size: int) -> None:
    if datatype == STRING:
        if count > MAX_STRINGS:
            raise BadRequest(f"{name}: expected at most {MAX_STRINGS} strings, got {count}")
        if size < STRING_HEAD * count:
            raise BadRequest(f"{name}: expected {count} strings, with a length before each, got {size} bytes")
    elif datatype not in SIZES:
        raise BadRequest(f"{name}: expected a Triton datatype, got {datatype[:SHOWN]!r}")
    elif size != SIZES[datatype] * count:
        expected = SIZES[datatype] * count
        raise BadRequest(f"{name}: expected {expected} bytes for {count} elements of {datatype}, got {size}")
