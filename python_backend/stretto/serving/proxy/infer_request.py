"""A look into an inference request, as bytes on their way to Triton.

Triton and the numpy of its stubs trust the shapes they are given: a dimension below zero, or a product that overflows,
ends a stub. So here a tensor must be as large as its shape says. The tensors' bytes are not copied, only measured.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from google.protobuf.message import DecodeError
from tritonclient.grpc.service_pb2 import ModelInferRequest

from stretto.departures import STREAM

MAX_HEAD_BYTES = 1 << 20
MAX_FIELDS = 256  # its tensors' own among them; a request with all inputs of all our models has less than half of that
MAX_ID = 1024  # characters, of names too: each response carries them, and Triton holds what a client does not read
MAX_PARAMETERS, MAX_PARAMETER_BYTES = 32, 4096  # each model of an ensemble reads them, the decoder with each chunk
MAX_RANK = 8
MAX_ELEMENTS = 1 << 31
MAX_STRINGS = 4096  # each becomes an object
SHOWN = 64  # characters of a name in an error

# The fields of messages by number, and how each may be written (grpc_service.proto; protobuf, encoding).
VARINT, LENGTH_DELIMITED = 0, 2
RAW_CONTENTS = 7
Kinds = Mapping[int, tuple[int, ...]]
REQUEST: Kinds = dict.fromkeys(range(1, 8), (LENGTH_DELIMITED,))
OUTPUT: Kinds = dict.fromkeys(range(1, 3), (LENGTH_DELIMITED,))
INPUT: Kinds = {**dict.fromkeys(range(1, 6), (LENGTH_DELIMITED,)), 3: (LENGTH_DELIMITED, VARINT)}  # a shape, unpacked
TENSORS = {5: INPUT, 6: OUTPUT}

Field = tuple[int, int, int, int]  # its number, and where its tag, its content and the next field begin

# Bytes of an element; a string has its length before it.
SIZES = {"BOOL": 1, "UINT8": 1, "INT8": 1, "UINT16": 2, "INT16": 2, "FP16": 2, "BF16": 2}
SIZES |= {"UINT32": 4, "INT32": 4, "FP32": 4, "UINT64": 8, "INT64": 8, "FP64": 8}
STRING, STRING_HEAD = "BYTES", 4

HOST = "stretto_host"  # the parameter that says whose a request is: who shares places reads it

INVALID, FULL, UNAVAILABLE = "invalid request", "full", "unavailable"


class BadRequest(Exception):
    """A request that Triton must not see; the message names the field, what was expected and what came.

    request_id: as its sender has called it, where that could be read. kind: with which the message begins for the
    client, as with the errors of the models.
    """

    def __init__(self, message: str, request_id: str = "", kind: str = INVALID) -> None:
        super().__init__(message)
        self.request_id, self.kind = request_id, kind

    @property
    def told(self) -> str:
        """What the client is told."""
        return f"{self.kind}: {self}"


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A request without its tensors' bytes, and how many bytes each tensor has."""

    head: ModelInferRequest
    raw_sizes: tuple[int, ...]


def read_infer_request(data: bytes) -> InferRequest:
    """The request in `data`; BadRequest for one that is none, or whose tensors are not as large as they say."""
    head, raw_sizes = bytearray(), []
    for number, start, content, end in _few_fields(data):
        if number == RAW_CONTENTS:
            raw_sizes.append(end - content)
            continue
        if len(head) + end - start > MAX_HEAD_BYTES:
            raise BadRequest(f"request: expected at most {MAX_HEAD_BYTES} bytes beside raw_input_contents, got more")
        head += data[start:end]
    try:
        request = InferRequest(ModelInferRequest.FromString(bytes(head)), tuple(raw_sizes))
    except DecodeError:
        raise BadRequest("request: expected a ModelInferRequest, got bytes that are none") from None
    for name in ("id", "model_name", "model_version"):
        if (length := len(getattr(request.head, name))) > MAX_ID:
            raise BadRequest(f"{name}: expected at most {MAX_ID} characters, got {length}")
    try:
        _check_names(request.head)
        _check_parameters(request.head)
        _check_tensors(request)
    except BadRequest as error:
        raise BadRequest(str(error), request.head.id) from None
    return request


def with_origin(data: bytes, host: str, stream: int = 0) -> bytes:
    """The request in `data`, which says that it is of `host` and has come by `stream`, whatever it said before.

    Messages in a row are one, and of an entry of a map that comes twice the last stands (protobuf, encoding).
    """
    last = ModelInferRequest()
    last.parameters[HOST].string_param = host
    last.parameters[STREAM].string_param = str(stream)
    return data + last.SerializeToString()


def _few_fields(data: bytes) -> Iterator[Field]:
    """The fields of the request; BadRequest for one too many, those of its tensors among them.

    Two bytes can be a field, and each takes a step here, or an object, while nobody else is served.
    """
    came = 0
    for field in _fields(data, 0, len(data), REQUEST):
        number, _, content, end = field
        inner: Iterable[Field] = _fields(data, content, end, TENSORS[number]) if number in TENSORS else ()
        came += 1 + sum(1 for _ in islice(inner, MAX_FIELDS))
        if came > MAX_FIELDS:
            raise BadRequest(f"request: expected at most {MAX_FIELDS} fields, those of its tensors included, got more")
        yield field


def _fields(data: bytes, at: int, end: int, known: Kinds) -> Iterator[Field]:
    """The fields of a message between `at` and `end`."""
    while at < end:
        number, kind = data[at] >> 3, data[at] & 7
        if kind not in known.get(number, ()):
            raise BadRequest(f"request: expected a ModelInferRequest, got field {number} of type {kind}")
        value, content = _varint(data, at + 1)
        size = value if kind == LENGTH_DELIMITED else 0
        if content + size > end:
            raise BadRequest(f"request: expected {size} bytes of field {number}, got {end - content}")
        yield number, at, content, content + size
        at = content + size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at `at`, and where it ends."""
    value = 0
    for place, byte in enumerate(data[at : at + 10]):
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, at + place + 1
    raise BadRequest("request: expected a ModelInferRequest, got a length without an end")


def _check_names(head: ModelInferRequest) -> None:
    """Triton reads names up to a NUL, and so would read others than those that are looked at here."""
    texts = [("id", head.id), ("model_name", head.model_name), ("model_version", head.model_version)]
    texts += [("parameters", value.string_param) for value in head.parameters.values()]
    texts += [("inputs", tensor.datatype) for tensor in head.inputs]
    for field, tensors in (("inputs", head.inputs), ("outputs", head.outputs)):
        texts += [(field, tensor.name) for tensor in tensors]
    for each in (head, *head.inputs, *head.outputs):
        texts += [("parameters", name) for name in each.parameters]
    for field, text in texts:
        if "\0" in text:
            raise BadRequest(f"{field}: expected text without NUL, got {text[:SHOWN]!r}")


def _check_parameters(head: ModelInferRequest) -> None:
    num_bytes = sum(len(name.encode()) + value.ByteSize() for name, value in head.parameters.items())
    if len(head.parameters) > MAX_PARAMETERS or num_bytes > MAX_PARAMETER_BYTES:
        expected = f"at most {MAX_PARAMETERS} of {MAX_PARAMETER_BYTES} bytes in all"
        raise BadRequest(f"parameters: expected {expected}, got {len(head.parameters)} of {num_bytes} bytes")


def _check_tensors(request: InferRequest) -> None:
    for output in request.head.outputs:
        if "classification" in output.parameters:  # of strings it ends Triton 2.51
            raise BadRequest(f"outputs.{output.name[:SHOWN]}: expected no classification, which none of these have")
    raw_sizes = iter(request.raw_sizes)
    for tensor in request.head.inputs:
        name = f"inputs.{tensor.name[:SHOWN]}"
        count = _num_elements(name, tensor.shape)
        if "shared_memory_region" in tensor.parameters:
            size = tensor.parameters["shared_memory_byte_size"].int64_param
            if min(size, tensor.parameters["shared_memory_offset"].int64_param) < 0:
                raise BadRequest(f"{name}: expected an offset and a size in shared memory >= 0, got one below")
        elif tensor.HasField("contents"):
            _check_contents(name, tensor, count)
            continue
        else:
            size = next(raw_sizes, -1)
            if size < 0:
                raise BadRequest(f"{name}: expected its bytes in raw_input_contents, got {len(request.raw_sizes)}")
        _check_size(name, tensor.datatype, count, size)
    if next(raw_sizes, None) is not None:
        raise BadRequest(f"raw_input_contents: expected one for each input, got {len(request.raw_sizes)}")


def _num_elements(name: str, shape: list[int]) -> int:
    if len(shape) > MAX_RANK:
        raise BadRequest(f"{name}: expected a shape of at most {MAX_RANK} dimensions, got {len(shape)}")
    if min(shape, default=0) < 0 or math.prod(size or 1 for size in shape) >= MAX_ELEMENTS:  # numpy counts a 0 so, too
        raise BadRequest(f"{name}: expected a shape of fewer than 2^31 elements, got {list(shape)}")
    return math.prod(shape)


def _check_contents(name: str, tensor: ModelInferRequest.InferInputTensor, count: int) -> None:
    came = sum(len(values) for _, values in tensor.contents.ListFields())
    if len(tensor.contents.bytes_contents) > MAX_STRINGS:
        raise BadRequest(f"{name}: expected at most {MAX_STRINGS} strings, got {came}")
    if came != count:
        raise BadRequest(f"{name}: expected {count} elements for shape {list(tensor.shape)}, got {came}")


def _check_size(name: str, datatype: str, count: int, size: int) -> None:
    if datatype == STRING:
        if count > MAX_STRINGS:
            raise BadRequest(f"{name}: expected at most {MAX_STRINGS} strings, got {count}")
        if size < STRING_HEAD * count:
            raise BadRequest(f"{name}: expected {count} strings, with a length before each, got {size} bytes")
    elif datatype not in SIZES:
        raise BadRequest(f"{name}: expected a datatype of Triton's, got {datatype[:SHOWN]!r}")
    elif size != SIZES[datatype] * count:
        expected = SIZES[datatype] * count
        raise BadRequest(f"{name}: expected {expected} bytes for {count} elements of {datatype}, got {size}")
