"""gRPC front end: checks each call, forwards its bytes to Triton, and returns the response."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any, Protocol

import grpc
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.wrappers_pb2 import StringValue
from tritonclient.grpc import service_pb2
from tritonclient.grpc.service_pb2 import ModelInferRequest, ModelInferResponse, ModelReadyRequest

from stretto.disconnects import Disconnects
from stretto.errors import FULL, INVALID, UNAVAILABLE
from stretto.proxy.access import Access, Metadata, OurModels, ServedModels, check_registration, host_of_call, refusal
from stretto.proxy.apis import APIS, HEALTH_CHECK, MODEL_INFER, MODEL_READY, MODEL_STREAM_INFER, OPEN, SERVICE
from stretto.proxy.connections import MAX_CONNECTIONS, Connections
from stretto.proxy.infer_request import SHOWN, BadRequest, InferRequest, read_infer_request, with_origin
from stretto.proxy.last_answers import REMEMBERED
from stretto.proxy.one_shot import FAILED, MAX_HELD_BYTES, OneShotReply, check_outputs
from stretto.proxy.refused_hosts import RefusedHosts
from stretto.proxy.sleep import Sleep
from stretto.proxy.triton_stream import (
    AGAIN,
    ENDED,
    BackgroundTasks,
    CallGate,
    ClientStream,
    Pace,
    Restarting,
    TritonStream,
    Upload,
    Uploads,
    client_status,
    reworded,
)
from stretto_contract.limits import FairLimit

MAX_SMALL_BYTES = 1 << 16  # enough for names; only key holders may load models, whose files are in the message
_TRITON = service_pb2.DESCRIPTOR.services_by_name[SERVICE.strip("/").rpartition(".")[2]].methods
# A health check is also a single string (grpc/health/v1/health.proto); its package is not installed.
_KINDS: dict[str, type[Message]] = {HEALTH_CHECK: StringValue}
_KINDS |= {SERVICE + method.name: GetMessageClass(method.input_type) for method in _TRITON}


def check_other_call(method: str, request: bytes, is_key_holder: bool) -> Message:
    """Return the message of a call other than an inference; raise BadRequest if it is malformed or forbidden.

    Triton would answer a malformed message with an internal error. Only messages of holders of the key may be large.
    """
    if not is_key_holder and len(request) > MAX_SMALL_BYTES:
        raise BadRequest(f"request: expected at most {MAX_SMALL_BYTES} bytes, got {len(request)}")
    try:
        message = _KINDS[method].FromString(request)
    except DecodeError:
        name = method.rpartition("/")[2]
        raise BadRequest(f"request: expected a message for {name}, got bytes that cannot be parsed") from None
    if isinstance(message, service_pb2.SystemSharedMemoryRegisterRequest):
        check_registration(message)
    return message


# WORKAROUND(triton#8708, fixed in 26.04): a stream with this header that ends with an error makes Triton read freed
# memory. Errors stay text with every server.
DROPPED_HEADERS = {"triton_grpc_error"}


class UnaryCalls:
    """Unary calls to Triton.

    If the client disconnects, a call to one of our models still runs to completion, unless a model is restarted. A call
    to another model is cancelled.
    """

    def __init__(self, triton: grpc.aio.Channel, background: BackgroundTasks, gate: CallGate) -> None:
        self._calls = {method: triton.unary_unary(method) for method in APIS if method != MODEL_STREAM_INFER}
        self._background = background
        self._gate = gate

    async def call(
        self, method: str, request: bytes, metadata: Metadata, slot: ExitStack | None = None, is_ours: bool = True
    ) -> bytes:
        """Return Triton's serialised response.

        Args:
            slot: Slot of the client's host, held until the response has arrived, even if the client disconnects.
            is_ours: False for third-party models, which ask Triton whether a request was cancelled.
        """
        call = self._calls[method](request, metadata=passed_on(metadata))
        answering = self._background.start(_result(call))
        try:
            return await asyncio.shield(answering)
        except asyncio.CancelledError:
            if is_ours:
                self._background.start(
                    self._await_answer(call, answering, ExitStack() if slot is None else slot.pop_all())
                )
            else:
                call.cancel()
            raise

    async def _await_answer(self, call: Any, answering: asyncio.Task[bytes], slot: ExitStack) -> None:
        with slot, suppress(Restarting, grpc.aio.AioRpcError):
            try:
                await self._gate.guard(_shielded(answering))
            finally:
                call.cancel()  # no effect on a completed call


async def _result(call: Awaitable[bytes]) -> bytes:
    return bytes(await call)


async def _shielded(answering: asyncio.Task[bytes]) -> bytes:
    return await asyncio.shield(answering)


def passed_on(metadata: Metadata) -> tuple[tuple[str, str | bytes], ...]:
    """Return the metadata to forward to Triton."""
    return tuple((name, value) for name, value in metadata if name not in DROPPED_HEADERS and name[:5] != "grpc-")


MAX_CALLS = 8192
MAX_CALLS_OF_A_CONNECTION = 256
# Limit on accepted RPCs that no handler has picked up yet (about 14 KiB each). Beyond it gRPC cancels new RPCs, from
# any client. A reset RPC counts towards its connection's limit until it is picked up, so one client needs many
# connections to reach this limit.
MAX_PENDING_CALLS = 1 << 14
SERVER_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    # No compression: gRPC decompresses a message before it checks the size, and gzip packs 60 MB of zeros into 60 KB.
    ("grpc.compression_enabled_algorithms_bitset", 1 << grpc.Compression.NoCompression),
    ("grpc.max_concurrent_streams", MAX_CALLS_OF_A_CONNECTION),
    ("grpc.max_allowed_incoming_connections", MAX_CONNECTIONS),
    ("grpc.server.max_pending_requests", MAX_PENDING_CALLS),
    ("grpc.server.max_pending_requests_hard_limit", MAX_PENDING_CALLS),
    ("grpc.so_reuseport", 0),  # otherwise a second server could share the port silently
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_connection_idle_ms", 600_000),  # closes connections without a call; clients reconnect
    # A call may be silent for longer than the 60 s after which balancers close a connection.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 60_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),  # otherwise clients may ping every five minutes
]
TRITON_OPTIONS = [
    ("grpc.enable_http_proxy", 0),  # Triton is on this host
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
]
# Responses while the launcher reports the server as not ready: three messages whose readiness field is false.
NOT_READY = {SERVICE + "ServerReady": b"", MODEL_READY: b"", HEALTH_CHECK: b"\x08\x02"}
STATUS = {INVALID: grpc.StatusCode.INVALID_ARGUMENT, FULL: grpc.StatusCode.RESOURCE_EXHAUSTED}
STATUS |= {UNAVAILABLE: grpc.StatusCode.UNAVAILABLE, FAILED: grpc.StatusCode.INTERNAL}
Context = Any  # grpc.aio.ServicerContext with messages of bytes
# A handler may keep the call's slot after returning, by taking over the stack.
Handler = Callable[[AsyncIterator[bytes], Context, ExitStack], Awaitable[None]]
CROWDED = f"{FULL}: this host has reached its share of open calls and connections"


class LauncherState(Protocol):
    """Server state as reported by the launcher."""

    gate: CallGate
    sleep: Sleep

    def is_ready(self) -> bool: ...


class GrpcProxy(grpc.GenericRpcHandler):
    """gRPC handler that forwards valid and permitted calls to Triton."""

    def __init__(
        self,
        triton: grpc.aio.Channel,
        allowed: Access,
        launcher: LauncherState,
        uploads: Uploads,
        disconnects: Disconnects,
        connections: Connections,
        ours: OurModels,
    ) -> None:
        self._access = allowed
        self._ours = ours
        self._is_ready = launcher.is_ready
        self._gate = launcher.gate
        self._sleep = launcher.sleep
        self._pace = Pace()
        self._uploads = uploads
        self._disconnects = disconnects
        self._shares = FairLimit(MAX_CALLS)
        self._connections = connections
        self._refused = RefusedHosts(ours.ensembles)
        self._one_shots = FairLimit(MAX_HELD_BYTES)
        self._infer = triton.stream_stream(MODEL_STREAM_INFER)
        self._background = BackgroundTasks()
        self._unary = UnaryCalls(triton, self._background, self._gate)
        self._models = ServedModels(allowed, ours.names, self._ask_model_ready)

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """Return the handler of a call; None for an unknown method."""
        method = details.method
        if method not in APIS:
            return None
        handler = self._stream if method == MODEL_STREAM_INFER else self._call(method)
        return grpc.stream_stream_rpc_method_handler(self._shared(handler))

    def _shared(self, handler: Handler) -> Callable[[AsyncIterator[bytes], Context], Awaitable[None]]:
        async def answer(requests: AsyncIterator[bytes], context: Context) -> None:
            peer = context.peer()
            with ExitStack() as slot, self._connections.call(peer) as has_connection:
                if not has_connection or not slot.enter_context(self._shares.reserving(host_of_call(peer))):
                    # also reaches clients that read no responses
                    await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, CROWDED)
                await handler(requests, context, slot)

        return answer

    def _call(self, method: str) -> Handler:
        """Return the handler of a unary method.

        It is registered as stream-stream, so that access is checked before the request body has been received.
        """
        api = APIS[method]

        async def answer(requests: AsyncIterator[bytes], context: Context, slot: ExitStack) -> None:
            metadata = context.invocation_metadata() or ()
            if not self._access.admits(api, metadata):
                await context.abort(grpc.StatusCode.PERMISSION_DENIED, refusal(api))
            request = await self._only_message(context)
            try:
                if method == MODEL_INFER:
                    host = self._access.client(context.peer(), metadata)
                    response = await self._infer_once(request, host, metadata, slot)
                else:
                    message = check_other_call(method, request, self._access.is_key_holder(metadata))
                    own_answer = self._own_answer(method, message)
                    if api != OPEN:
                        await self._sleep.enter(len(request), host_of_call(context.peer()), slot)
                    if own_answer is None:
                        response = await self._unary.call(method, request, metadata, slot)
                    else:
                        response = own_answer
            except BadRequest as error:
                await context.abort(STATUS[error.category], error.client_message)
            except Restarting as error:
                await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
            except grpc.aio.AioRpcError as error:
                await context.abort(*client_status(error, self._gate.report_dead_stub))
            await context.write(response)

        return answer

    def _own_answer(self, method: str, message: Message) -> bytes | None:
        """Return the response to a call that Triton cannot or need not answer now, or None.

        If the server sleeps, and its last answers do not include this one, raise BadRequest.
        """
        if method in NOT_READY and not (self._is_ready() if self._sleep.is_awake else self._sleep.accepts_requests):
            return NOT_READY[method]
        if self._sleep.is_awake or APIS[method] != OPEN:
            return None
        if method not in REMEMBERED:
            name = method.rpartition("/")[2]
            raise BadRequest(f"{name}: the idle server sleeps; a request for speech wakes it", category=UNAVAILABLE)
        return self._sleep.answer(method, message)

    async def _ask_model_ready(self, request: bytes) -> bytes:
        if self._sleep.is_awake:
            return await self._unary.call(MODEL_READY, request, ())
        return self._sleep.answer(MODEL_READY, ModelReadyRequest.FromString(request))

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

    async def _infer_once(self, request: bytes, host: str, metadata: Metadata, slot: ExitStack) -> bytes:
        read = await self._check_infer(request, metadata)
        if read.head.model_name in self._ours.cloning:
            reply = await self._one_shot(request, read.head, host, metadata, slot)
            return bytes(reply.SerializeToString())
        await self._sleep.enter(len(request), host, slot)
        request_with_origin = with_origin(request, host)
        is_ours = read.head.model_name in self._ours.names
        return await self._gate.guard(self._unary.call(MODEL_INFER, request_with_origin, metadata, slot, is_ours))

    async def infer(self, request: bytes, host: str, slot: ExitStack) -> ModelInferResponse:
        """Return the one-shot reply of a model that clones voices, for a client without gRPC.

        `slot`, that of the client's host, is held until the reply has ended, even if the client disconnects.

        Raises:
            BadRequest: The request is invalid, or was refused or failed.
            Restarting: A model is being restarted.
            AioRpcError: Triton has ended the call.
        """
        if not slot.enter_context(self._shares.reserving(host)):
            raise BadRequest(CROWDED.removeprefix(f"{FULL}: "), category=FULL)
        read = await self._check_infer(request, ())
        if read.head.model_name not in self._ours.cloning:
            expected = ", ".join(sorted(self._ours.cloning))
            got = repr(read.head.model_name[:SHOWN])
            raise BadRequest(f"model_name: expected one of {expected}, got {got}", read.head.id)
        return await self._one_shot(request, read.head, host, (), slot)

    async def _one_shot(
        self, request: bytes, head: ModelInferRequest, host: str, metadata: Metadata, slot: ExitStack
    ) -> ModelInferResponse:
        """Return all samples of a reply; if the client disconnects, notify the models, as for a stream."""
        check_outputs(head)
        if self._gate.is_closed:
            raise Restarting
        self._refused.check(head, host)
        await self._sleep.enter(len(request), host, slot)
        number = self._disconnects.next_number()
        open_call = partial(self._infer, metadata=passed_on(metadata))
        stream = TritonStream(open_call, number, lambda response: self._refused.note(host, response))
        stream.record_model(head)
        reply = OneShotReply(head, self._one_shots, host, slot)
        try:
            collecting = self._collect(stream, with_origin(request, host, number), reply)
            await self._gate.guard(collecting, lambda: stream.is_answered)
        except Restarting:
            stream.cancel()  # otherwise Triton would never end the stream
            raise
        finally:
            if not stream.is_over:
                self._background.start(self._drain(stream, slot.pop_all()))
        return reply.joined()

    async def _collect(self, stream: TritonStream, request: bytes, reply: OneShotReply) -> None:
        await stream.write(request)
        await stream.end()
        while (response := await stream.read()) is not None:
            reply.add(reworded(response, self._gate.report_dead_stub))

    async def _stream(self, requests: AsyncIterator[bytes], context: Context, slot: ExitStack) -> None:
        metadata = context.invocation_metadata() or ()
        host = self._access.client(context.peer(), metadata)
        number = self._disconnects.next_number()

        def note(response: bytes) -> None:
            if stream.model is not None and stream.model[0] in self._ours.ensembles:
                self._refused.note(host, response)

        stream = TritonStream(partial(self._infer, metadata=passed_on(metadata)), number, note)
        client = ClientStream(stream, context, self._gate.report_dead_stub)
        answering = asyncio.current_task()
        assert answering is not None
        upload = Upload(answering.cancel, host)
        feeding = asyncio.create_task(self._feed(client, metadata, upload, slot))
        try:
            await self._gate.guard(client.answer(), lambda: stream.is_answered)
        except Restarting as error:
            stream.cancel()  # otherwise Triton would never end the stream
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        except asyncio.CancelledError:
            if not upload.is_ended:
                raise
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, ENDED)
        except grpc.aio.AioRpcError as error:
            await context.abort(*client_status(error, self._gate.report_dead_stub))
        finally:
            feeding.cancel()
            if stream.model is not None and stream.model[0] not in self._ours.names:
                stream.cancel()  # third-party models ask Triton for cancellation
            elif not stream.is_over:
                self._background.start(self._drain(stream, slot.pop_all()))
            # If the stream fails, so does feeding; only the stream's error is reported.
            await asyncio.gather(feeding, return_exceptions=True)

    async def _drain(self, stream: TritonStream, slot: ExitStack) -> None:
        """Notify the models that the client of a stream has disconnected, and discard the remaining responses.

        The client's host keeps its slot until Triton ends the stream.
        """
        self._disconnects.record(stream.number)
        with slot, suppress(Restarting, grpc.aio.AioRpcError):
            try:
                await self._gate.guard(stream.drain(), lambda: stream.is_answered)
            finally:
                stream.cancel()

    async def _feed(self, client: ClientStream, metadata: Metadata, upload: Upload, slot: ExitStack) -> None:
        stream = client.stream

        async def check(request: bytes) -> None:
            upload.note_message()
            read = await self._check_infer(request, metadata)
            if self._gate.is_closed:
                raise BadRequest(AGAIN, read.head.id, UNAVAILABLE)
            self._refused.check(read.head, upload.host)
            if stream.model is None:  # from its first request to its end, the stream keeps the server awake
                await self._sleep.enter(len(request), upload.host, slot)
            stream.record_model(read.head)

        with self._uploads.entry(upload):
            await client.feed(check, upload.host)

    async def _check_infer(self, data: bytes, metadata: Metadata) -> InferRequest:
        await self._pace.wait(len(data))
        request = read_infer_request(data)
        await self._models.check(request.head, metadata)
        return request
