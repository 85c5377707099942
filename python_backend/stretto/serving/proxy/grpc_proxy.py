"""The gRPC port: calls are passed on to Triton as bytes, one by one, and its answers back."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any, Protocol

import grpc
from tritonclient.grpc.service_pb2 import ModelStreamInferResponse

from stretto.departures import Departures
from stretto.serving.proxy import access
from stretto.serving.proxy.access import MODEL_INFER, MODEL_STREAM_INFER, Access, Metadata
from stretto.serving.proxy.gate import AGAIN, Gate, Restarting
from stretto.serving.proxy.infer_request import (
    FULL,
    INVALID,
    UNAVAILABLE,
    BadRequest,
    InferRequest,
    read_infer_request,
    with_origin,
)
from stretto.serving.proxy.other_calls import check_other_call
from stretto.serving.proxy.pace import Pace
from stretto.serving.proxy.peers import host_of_call
from stretto.serving.proxy.triton_stream import TritonStream, Unwatched
from stretto.serving.proxy.uploads import ENDED, Upload, Uploads
from stretto.shares import Shares

# Triton 2.51 reads memory that it has freed when a stream with this header ends with an error.
DROPPED_HEADERS = {"triton_grpc_error"}
MAX_CALLS = 8192
MAX_CALLS_OF_A_CONNECTION = 256
# Calls that have begun and were not taken up yet, of 14 KiB each: beyond, gRPC cancels new ones, whosesoever they are.
# One that is reset counts for its connection until it is taken up, so that it takes many connections to come so far.
MAX_PENDING_CALLS = 1 << 14
SERVER_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_concurrent_streams", MAX_CALLS_OF_A_CONNECTION),
    ("grpc.server.max_pending_requests", MAX_PENDING_CALLS),
    ("grpc.server.max_pending_requests_hard_limit", MAX_PENDING_CALLS),
    ("grpc.so_reuseport", 0),  # or else a second server could take the port without a word
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_connection_idle_ms", 600_000),  # without a call; a client that calls again connects again
]
TRITON_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
]
# What is answered while the launcher knows that the server is not ready: three messages whose field says false.
NOT_READY = {access.SERVICE + "ServerReady": b"", access.SERVICE + "ModelReady": b"", access.HEALTH_CHECK: b"\x08\x02"}
STATUS = {INVALID: grpc.StatusCode.INVALID_ARGUMENT, FULL: grpc.StatusCode.RESOURCE_EXHAUSTED}
STUB_HAS_ENDED = "' is not healthy."  # in Triton's words: "Stub process 'acoustic_decoder_0_0' is not healthy."
# All of such a message, so that nobody's text can be taken for one; the group is the model.
GIVEN_UP = re.compile(
    r"(?:\[request id: [^]]{0,128}\] )?(?:in ensemble '\w+', )?Stub process '(\w+)_\d+_\d+' is not healthy\."
)
GONE = ("unix:", "ocket closed", "onnection reset", "roken pipe")  # in gRPC's words for a server that is not there
BROKEN_OFF = "Internal error from Core"  # gRPC's, where a write finds the call ended; why it did is lost

Context = Any  # grpc.aio.ServicerContext, of bytes
Check = Callable[[bytes], Awaitable[None]]
Handler = Callable[[AsyncIterator[bytes], Context], Awaitable[None]]
Tell = Callable[[str], None]
CROWDED = "full: this host has as many calls as the others leave it"


class LauncherWord(Protocol):
    """What the launcher has said of the server behind."""

    gate: Gate

    def is_ready(self) -> bool:
        """Whether it is ready, for all that the launcher knows."""
        ...


class GrpcProxy(grpc.GenericRpcHandler):
    """Passes on the calls that `access` admits, as far as they are sound.

    departures: where the models are told of clients that have left.
    """

    def __init__(
        self,
        triton: grpc.aio.Channel,
        allowed: Access,
        launcher: LauncherWord,
        uploads: Uploads,
        departures: Departures,
    ) -> None:
        self._access = allowed
        self._is_ready, self._gate = launcher.is_ready, launcher.gate
        self._pace, self._uploads, self._departures = Pace(), uploads, departures
        self._shares = Shares(MAX_CALLS)
        self._infer = triton.stream_stream(MODEL_STREAM_INFER)
        self._unary = {method: triton.unary_unary(method) for method in access.APIS if method != MODEL_STREAM_INFER}
        self._unwatched = Unwatched()

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """The handler of a call; None for one that there is not."""
        method = details.method
        if method not in access.APIS:
            return None
        handler = self._stream if method == MODEL_STREAM_INFER else self._call(method)
        return grpc.stream_stream_rpc_method_handler(self._shared(handler))

    def _shared(self, handler: Handler) -> Handler:
        async def answer(requests: AsyncIterator[bytes], context: Context) -> None:
            with self._shares.taking(host_of_call(context.peer())) as is_left:
                if not is_left:  # a client that takes no answers can still be told so
                    await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, CROWDED)
                await handler(requests, context)

        return answer

    def _call(self, method: str) -> Handler:
        """Answers one message by one; as a stream, for otherwise a call is heard of when its message is whole."""
        api = access.APIS[method]

        async def answer(requests: AsyncIterator[bytes], context: Context) -> None:
            metadata = context.invocation_metadata() or ()
            if not self._access.admits(api, metadata):
                await context.abort(grpc.StatusCode.PERMISSION_DENIED, access.refusal(api))
            request = await self._only_message(context)
            try:
                if method == MODEL_INFER:
                    response = await self._infer_once(request, host_of_call(context.peer()), metadata)
                else:
                    check_other_call(method, request, self._access.is_key_holder(metadata))
                    is_told = method in NOT_READY and not self._is_ready()
                    response = NOT_READY[method] if is_told else await self._pass_on(method, request, metadata)
            except BadRequest as error:
                await context.abort(STATUS[error.kind], error.told)
            except Restarting as error:
                await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
            except grpc.aio.AioRpcError as error:
                await context.abort(*_told(error, self._gate.give_up))
            await context.write(response)

        return answer

    async def _only_message(self, context: Context) -> bytes:
        reading = asyncio.create_task(context.read())
        upload = Upload(reading.cancel, host_of_call(context.peer()))
        with self._uploads.entry(upload):
            try:
                message = await reading
            except asyncio.CancelledError:
                reading.cancel()
                if not upload.is_ended:
                    raise
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, ENDED)
        if message is grpc.aio.EOF:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "expected a message, got none")
        return message

    async def _infer_once(self, request: bytes, host: str, metadata: Metadata) -> bytes:
        read = await self._check_infer(request, metadata)
        is_others = read.head.model_name in self._access.others
        passing = self._pass_on(MODEL_INFER, with_origin(request, host), metadata, ends_with_caller=is_others)
        return await self._gate.guard(passing)

    async def _pass_on(self, method: str, request: bytes, metadata: Metadata, ends_with_caller: bool = False) -> bytes:
        answer = _result(self._unary[method](request, metadata=_passed_on(metadata)))
        return bytes(await (answer if ends_with_caller else asyncio.shield(self._unwatched.start(answer))))

    async def _stream(self, requests: AsyncIterator[bytes], context: Context) -> None:
        metadata, host = context.invocation_metadata() or (), host_of_call(context.peer())
        stream = TritonStream(self._infer(metadata=_passed_on(metadata)), self._departures.next_number())
        client = _Client(stream, context, self._gate.give_up)
        answering = asyncio.current_task()
        assert answering is not None
        upload = Upload(answering.cancel, host)
        feeding = asyncio.create_task(self._feed(client, requests, metadata, upload))
        try:
            await self._gate.guard(client.answer(), lambda: stream.is_answered)
        except Restarting as error:
            stream.cancel()  # Triton would never end it
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        except asyncio.CancelledError:
            if not upload.is_ended:
                raise
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, ENDED)
        except grpc.aio.AioRpcError as error:
            await context.abort(*_told(error, self._gate.give_up))
        finally:
            feeding.cancel()
            if stream.asks_others and not stream.asks_us:
                stream.cancel()
            elif not stream.is_over:
                self._unwatched.start(self._see_off(stream, host))
            await asyncio.gather(feeding, return_exceptions=True)  # it fails where the stream does, which was told

    async def _see_off(self, stream: TritonStream, host: str) -> None:
        """Have the models end what a client has left, whose host has its share of it until then."""
        self._departures.mark(stream.number)
        with self._shares.taking(host), suppress(Restarting, grpc.aio.AioRpcError):
            try:
                await self._gate.guard(stream.run_out(), lambda: stream.is_answered)
            finally:
                stream.cancel()

    async def _feed(
        self, client: "_Client", requests: AsyncIterator[bytes], metadata: Metadata, upload: Upload
    ) -> None:
        stream = client.stream

        async def check(request: bytes) -> None:
            upload.came()
            read = await self._check_infer(request, metadata)
            if self._gate.is_shut:
                raise BadRequest(AGAIN, read.head.id, UNAVAILABLE)
            is_others = read.head.model_name in self._access.others
            stream.asks_us, stream.asks_others = stream.asks_us or not is_others, stream.asks_others or is_others

        with self._uploads.entry(upload):
            await client.feed(requests, check, upload.host)

    async def _check_infer(self, data: bytes, metadata: Metadata) -> InferRequest:
        await self._pace.wait(len(data))
        request = read_infer_request(data)
        model = request.head.model_name
        if model in access.INNER_MODELS and not self._access.admits(access.MODELS, metadata):
            raise BadRequest(f"model_name: {access.refusal(access.MODELS)}", request.head.id)
        return request


class _Client:
    """A client's stream beside the one to Triton that answers it."""

    def __init__(self, stream: TritonStream, context: Context, give_up: Tell) -> None:
        self.stream, self._context, self._give_up = stream, context, give_up
        self._writing = asyncio.Lock()

    async def feed(self, requests: AsyncIterator[bytes], check: Check, host: str) -> None:
        """Pass sound requests on to the end, as `host`'s; answer the others here, as Triton does, and leave the stream
        open."""
        async for request in requests:
            try:
                await check(request)
            except BadRequest as error:
                response = ModelStreamInferResponse(error_message=error.told)
                response.infer_response.id = error.request_id
                await self._write(response.SerializeToString())
            else:
                await self.stream.write(with_origin(request, host, self.stream.number))
        await self.stream.end()

    async def answer(self) -> None:
        """Pass Triton's responses back to the end; AioRpcError where Triton ends otherwise."""
        while (response := await self.stream.read()) is not None:
            await self._write(_retold(response, self._give_up))

    async def _write(self, response: bytes) -> None:
        async with self._writing:
            await self._context.write(response)


async def _result(call: Awaitable[bytes]) -> bytes:
    return await call


def _passed_on(metadata: Metadata) -> tuple[tuple[str, str | bytes], ...]:
    return tuple((name, value) for name, value in metadata if name not in DROPPED_HEADERS and name[:5] != "grpc-")


def _retold(response: bytes, give_up: Tell) -> bytes:
    """A response, as it is but where Triton answers before the launcher knows that a stub has ended."""
    if STUB_HAS_ENDED.encode() not in response:
        return response
    retold = ModelStreamInferResponse.FromString(response)
    retold.error_message = _said_of_stubs(retold.error_message, give_up)
    return retold.SerializeToString()


def _said_of_stubs(message: str, give_up: Tell) -> str:
    """An error of Triton's, in our words where it is about a stub that Triton takes for dead."""
    if found := GIVEN_UP.fullmatch(message):
        give_up(found[1])
    return str(Restarting()) if message.endswith(STUB_HAS_ENDED) else message


def _told(error: grpc.aio.AioRpcError, give_up: Tell) -> tuple[grpc.StatusCode, str]:
    """The status and the words of a call to Triton that ended with an error."""
    code, details = error.code(), _said_of_stubs(error.details() or "", give_up)
    is_gone = code is grpc.StatusCode.UNAVAILABLE and any(words in details for words in GONE)
    if is_gone or details == BROKEN_OFF:
        return grpc.StatusCode.UNAVAILABLE, "unavailable: the server is starting"
    return code, details
