"""Inference over HTTP with the models for clients that clone voices: JSON as in Triton's HTTP service, one response.

A request becomes the message of a gRPC call and passes the same checks.
"""

import asyncio
import http.client
import io
import re
import struct
from array import array
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from http import HTTPStatus
from typing import Annotated, Any

import grpc
import msgspec
import numpy as np
from pydantic_core import from_json
from tritonclient.grpc.service_pb2 import ModelInferRequest, ModelInferResponse

from stretto.errors import FULL, INVALID, UNAVAILABLE
from stretto.proxy.infer_request import SHOWN, BadRequest
from stretto.proxy.pages import Page, error_page
from stretto.proxy.triton_stream import (
    BYTES_PER_CORE_S,
    ENDED,
    Pace,
    Restarting,
    Upload,
    Uploads,
    client_status,
)
from stretto_contract.limits import FairLimit

MAX_BODY_BYTES = 16 << 20  # JSON of 30 s at 16 kHz, with up to 20 characters a sample, has 10 MB
MAX_ELEMENTS = 1 << 20  # commas of the JSON; 65 s at 16 kHz. A million take at most a tenth of a second to parse
ELEMENT_BYTES = 10  # shorter elements, with their commas, take as long to parse
MAX_PARTS = 1024  # brackets and quotes of the JSON: a list or a string takes longer to parse than a number
SMALL_BYTES = 1 << 16  # smaller bodies never wait
MAX_POSTS = 128  # half of the connections, so that others still get the readiness
BODY_S = 30.0
PIECE = 1 << 14  # samples in each part of a response: encoding one takes about a millisecond
INFER = re.compile(r"/v2/models/(\w{1,128})(?:/versions/1)?/infer")
DTYPES: dict[str, Any] = {"FP32": np.float32, "INT32": np.int32}
STRING_HEAD = struct.Struct("<I")
STATUS = {INVALID: HTTPStatus.BAD_REQUEST, FULL: HTTPStatus.SERVICE_UNAVAILABLE}
STATUS |= {UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE}
CODES = {grpc.StatusCode.INVALID_ARGUMENT: HTTPStatus.BAD_REQUEST}
CODES |= {grpc.StatusCode.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE}

Infer = Callable[[bytes, str, ExitStack], Awaitable[ModelInferResponse]]
Element = float | str


class InputRecord(msgspec.Struct):
    """JSON form of an input tensor. Its elements may be in one list or, for a shape [1, n], in a list of one list."""

    name: str
    shape: list[Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]]
    datatype: str
    data: list[Element | list[Element]]


class RequestRecord(msgspec.Struct):
    """JSON form of a request. Other fields, such as `outputs`, are ignored, because the models have one output."""

    inputs: list[InputRecord]
    id: str = ""


class HttpInfer:
    """Handler of POST requests for inference.

    Args:
        infer: Returns the reply to a serialised request of a host (`GrpcProxy.infer`).
    """

    def __init__(self, infer: Infer, uploads: Uploads, report_dead_stub: Callable[[str], None]) -> None:
        self._infer = infer
        self._uploads = uploads
        self._report_dead_stub = report_dead_stub
        self._posts = FairLimit(MAX_POSTS)
        # bodies are parsed on the thread that forwards all calls: at this rate, in at most a tenth of its time
        self._pace = Pace(BYTES_PER_CORE_S, small_bytes=SMALL_BYTES)

    async def __call__(self, path: str, head: bytes, reader: asyncio.StreamReader, host: str) -> Page:
        """Return the response to a request with these header lines; raise OSError if the client is gone or slow."""
        try:
            model = INFER.fullmatch(path)
            if model is None:
                raise BadRequest(f"path: expected /v2/models/<name>/infer, got {path[:SHOWN]!r}")
            with ExitStack() as slot:
                if not slot.enter_context(self._posts.reserving(host)):
                    raise BadRequest("this host has reached its share of requests over HTTP", category=FULL)
                body = await self._read(num_bytes(head), reader, host)
                num_elements = min(body.count(b","), MAX_ELEMENTS)  # more are refused without parsing
                await self._pace.wait(max(len(body), ELEMENT_BYTES * num_elements))
                reply = await _while_connected(self._infer(message(model[1], body), host, slot), reader)
            return Page(HTTPStatus.OK, pieces(reply))
        except BadRequest as error:
            status = STATUS.get(error.category, HTTPStatus.INTERNAL_SERVER_ERROR)
            return error_page(status, error.client_message)
        except Restarting as error:
            return error_page(HTTPStatus.SERVICE_UNAVAILABLE, str(error))
        except grpc.aio.AioRpcError as error:
            code, details = client_status(error, self._report_dead_stub)
            return error_page(CODES.get(code, HTTPStatus.INTERNAL_SERVER_ERROR), details)

    async def _read(self, size: int, reader: asyncio.StreamReader, host: str) -> bytes:
        task = asyncio.current_task()
        assert task is not None
        upload = Upload(task.cancel, host)
        try:
            with self._uploads.entry(upload):
                async with asyncio.timeout(BODY_S):
                    return await reader.readexactly(size)
        except asyncio.IncompleteReadError:
            raise ConnectionResetError from None
        except asyncio.CancelledError:
            if not upload.is_ended:
                raise
            task.uncancel()
            raise BadRequest(ENDED.removeprefix(f"{FULL}: "), category=FULL) from None


async def _while_connected(
    answering: Awaitable[ModelInferResponse], reader: asyncio.StreamReader
) -> ModelInferResponse:
    """Return the reply; cancel it and raise ConnectionResetError if the client disconnects first."""
    reply = asyncio.ensure_future(answering)
    watching = asyncio.ensure_future(reader.read(1))
    try:
        await asyncio.wait((reply, watching), return_when=asyncio.FIRST_COMPLETED)
        if not reply.done() and not watching.result():
            raise ConnectionResetError
        return await reply
    finally:
        for task in (reply, watching):
            task.cancel()
        await asyncio.gather(reply, watching, return_exceptions=True)


def num_bytes(head: bytes) -> int:
    """Return the size of a request's body, given its header lines; the body must be JSON, and not from a browser.

    A browser asks another site before it sends JSON to it. If a page uses a DNS name that now points to this host, the
    browser sends `Origin`, which is refused.
    """
    try:
        headers = http.client.parse_headers(io.BytesIO(head))
    except http.client.HTTPException:
        raise BadRequest("headers: expected at most 100 of them, got more") from None
    if headers["origin"] is not None:
        raise BadRequest("origin: expected none, because this port is not for browsers, got one")
    if headers.get_content_type() != "application/json" or headers["inference-header-content-length"] is not None:
        raise BadRequest("content-type: expected application/json without binary tensors, got another one")
    lengths = headers.get_all("content-length", [])
    if len(lengths) != 1 or not re.fullmatch(r"\d{1,18}", lengths[0], re.ASCII):
        raise BadRequest("content-length: expected one number of bytes, got another value or none")
    if (size := int(lengths[0])) > MAX_BODY_BYTES:
        raise BadRequest(f"content-length: expected at most {MAX_BODY_BYTES} bytes, got {size}")
    return size


def message(model: str, body: bytes) -> bytes:
    """Return a request as a serialised ModelInferRequest."""
    for limit, what, signs in ((MAX_PARTS, "brackets and quotes", b'[{"'), (MAX_ELEMENTS, "elements", b",")):
        if sum(body.count(signs[at : at + 1]) for at in range(len(signs))) > limit:
            raise BadRequest(f"request: expected JSON with at most {limit} {what}, got more")
    try:
        # msgspec's own parser takes up to 13 µs for a number such as 1e300; this one at most 10 ns per byte
        record = msgspec.convert(from_json(body, allow_inf_nan=False, cache_strings="none"), RequestRecord)
    except (msgspec.MsgspecError, ValueError) as error:
        raise BadRequest(f"request: expected JSON with a list of inputs, got {str(error)[:200]}") from None
    request = ModelInferRequest(id=record.id[: 1 << 11], model_name=model)
    for tensor in record.inputs:
        try:
            request.raw_input_contents.append(_content(tensor))
            request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        except (ValueError, OverflowError) as error:
            raise BadRequest(f"inputs.{tensor.name[:SHOWN]}: {str(error)[:200]}", record.id) from None
    return bytes(request.SerializeToString())


def _content(tensor: InputRecord) -> bytes:
    """Return the elements of a tensor as in `raw_input_contents`; raise ValueError if one has another type."""
    is_nested = len(tensor.data) == 1 and isinstance(tensor.data[0], list)
    elements: list[Any] = tensor.data[0] if is_nested else tensor.data  # type: ignore[assignment]
    if tensor.datatype == "BYTES":
        if not all(isinstance(element, str) for element in elements):
            raise ValueError("expected strings for BYTES, got another element")
        encoded = [element.encode() for element in elements]
        return b"".join(STRING_HEAD.pack(len(element_bytes)) + element_bytes for element_bytes in encoded)
    if tensor.datatype not in DTYPES:
        raise ValueError(f"expected FP32, INT32 or BYTES, got {tensor.datatype[:SHOWN]!r}")
    try:
        numbers = np.frombuffer(array("d", elements))
    except TypeError:
        raise ValueError(f"expected numbers for {tensor.datatype}, got another element") from None
    dtype = DTYPES[tensor.datatype]
    with np.errstate(all="ignore"):
        converted = numbers.astype(dtype)
    if dtype is np.int32 and not (converted == numbers).all():
        raise ValueError("expected integers of 32 bits, got others")
    return converted.tobytes()


def pieces(reply: ModelInferResponse) -> Iterator[bytes]:
    """Yield the parts of the JSON of a response with one tensor, float32 [1, n]."""
    (output,) = reply.outputs
    (content,) = reply.raw_output_contents
    head = {"id": reply.id} if reply.id else {}
    head |= {"model_name": reply.model_name, "model_version": reply.model_version}
    described = {"name": output.name, "datatype": output.datatype, "shape": list(output.shape)}
    yield msgspec.json.encode(head)[:-1] + b',"outputs":[' + msgspec.json.encode(described)[:-1] + b',"data":['
    samples = np.frombuffer(content, np.float32)
    for start in range(0, len(samples), PIECE):
        yield b"," * (start > 0) + msgspec.json.encode(samples[start : start + PIECE].tolist())[1:-1]
    yield b"]}]}"
