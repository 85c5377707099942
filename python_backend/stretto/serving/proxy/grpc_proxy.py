"""The gRPC port: calls are passed on to Triton as bytes, one by one, and its answers back."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, suppress
from typing import Any, Protocol

import grpc

from stretto.departures import Departures
from stretto.serving.proxy import access
from stretto.serving.proxy.access import MODEL_INFER, MODEL_READY, MODEL_STREAM_INFER, Access, Metadata
from stretto.serving.proxy.client_stream import ClientStream
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
from stretto.serving.proxy.served_models import OURS, ServedModels
from stretto.serving.proxy.sole_calls import SoleCalls, passed_on
from stretto.serving.proxy.triton_stream import TritonStream, Unwatched
from stretto.serving.proxy.triton_words import told
from stretto.serving.proxy.uploads import ENDED, Upload, Uploads
from stretto.shares import Shares

MAX_CALLS = 8192
MAX_CALLS_OF_A_CONNECTION = 256
# Calls that have begun and were not taken up yet, of 14 KiB each: beyond, gRPC cancels new ones, whosesoever they are.
# One that is reset counts for its connection until it is taken up, so that it takes many connections to come so far.
MAX_PENDING_CALLS = 1 << 14
SERVER_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    # Identity only: gRPC inflates a message before its size is checked, and gzip packs 60 MB of zeros into 60 KB.
    ("grpc.compression_enabled_algorithms_bitset", 1 << grpc.Compression.NoCompression),
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
NOT_READY = {access.SERVICE + "ServerReady": b"", MODEL_READY: b"", access.HEALTH_CHECK: b"\x08\x02"}
STATUS = {INVALID: grpc.StatusCode.INVALID_ARGUMENT, FULL: grpc.StatusCode.RESOURCE_EXHAUSTED}
STATUS[UNAVAILABLE] = grpc.StatusCode.UNAVAILABLE
Context = Any  # grpc.aio.ServicerContext, of bytes
Handler = Callable[[AsyncIterator[bytes], Context, ExitStack], Awaitable[None]]  # which may take the call's place over
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
        self._unwatched = Unwatched()
        self._sole = SoleCalls(triton, self._unwatched, self._gate)
        self._models = ServedModels(allowed, lambda request: self._sole.ask(MODEL_READY, request, ()))

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """The handler of a call; None for one that there is not."""
        method = details.method
        if method not in access.APIS:
            return None
        handler = self._stream if method == MODEL_STREAM_INFER else self._call(method)
        return grpc.stream_stream_rpc_method_handler(self._shared(handler))

    def _shared(self, handler: Handler) -> Callable[[AsyncIterator[bytes], Context], Awaitable[None]]:
        async def answer(requests: AsyncIterator[bytes], context: Context) -> None:
            with ExitStack() as place:
                if not place.enter_context(self._shares.taking(host_of_call(context.peer()))):
                    await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, CROWDED)  # told also who takes no answers
                await handler(requests, context, place)

        return answer

    def _call(self, method: str) -> Handler:
        """Answers one message by one; as a stream, for otherwise a call is heard of when its message is whole."""
        api = access.APIS[method]

        async def answer(requests: AsyncIterator[bytes], context: Context, place: ExitStack) -> None:
            metadata = context.invocation_metadata() or ()
            if not self._access.admits(api, metadata):
                await context.abort(grpc.StatusCode.PERMISSION_DENIED, access.refusal(api))
            request = await self._only_message(context)
            try:
                if method == MODEL_INFER:
                    response = await self._infer_once(request, context, place)
                else:
                    check_other_call(method, request, self._access.is_key_holder(metadata))
                    is_told = method in NOT_READY and not self._is_ready()
                    response = NOT_READY[method] if is_told else await self._sole.ask(method, request, metadata, place)
            except BadRequest as error:
                await context.abort(STATUS[error.kind], error.told)
            except Restarting as error:
                await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
            except grpc.aio.AioRpcError as error:
                await context.abort(*told(error, self._gate.give_up))
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

    async def _infer_once(self, request: bytes, context: Context, place: ExitStack) -> bytes:
        metadata = context.invocation_metadata() or ()
        read = await self._check_infer(request, metadata)
        whose, is_ours = with_origin(request, host_of_call(context.peer())), read.head.model_name in OURS
        return await self._gate.guard(self._sole.ask(MODEL_INFER, whose, metadata, place, is_ours))

    async def _stream(self, requests: AsyncIterator[bytes], context: Context, place: ExitStack) -> None:
        metadata, host = context.invocation_metadata() or (), host_of_call(context.peer())
        stream = TritonStream(self._infer(metadata=passed_on(metadata)), self._departures.next_number())
        client = ClientStream(stream, context, self._gate.give_up)
        answering = asyncio.current_task()
        assert answering is not None
        upload = Upload(answering.cancel, host)
        feeding = asyncio.create_task(self._feed(client, metadata, upload))
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
            await context.abort(*told(error, self._gate.give_up))
        finally:
            feeding.cancel()
            if stream.model is not None and stream.model[0] not in OURS:
                stream.cancel()  # they ask Triton
            elif not stream.is_over:
                self._unwatched.start(self._see_off(stream, place.pop_all()))
            await asyncio.gather(feeding, return_exceptions=True)  # it fails where the stream does, which was told

    async def _see_off(self, stream: TritonStream, place: ExitStack) -> None:
        """Have the models end what a client has left, whose host has the place of it until then."""
        self._departures.mark(stream.number)
        with place, suppress(Restarting, grpc.aio.AioRpcError):
            try:
                await self._gate.guard(stream.run_out(), lambda: stream.is_answered)
            finally:
                stream.cancel()

    async def _feed(self, client: ClientStream, metadata: Metadata, upload: Upload) -> None:
        stream = client.stream

        async def check(request: bytes) -> None:
            upload.came()
            read = await self._check_infer(request, metadata)
            if self._gate.is_shut:
                raise BadRequest(AGAIN, read.head.id, UNAVAILABLE)
            stream.ask(read.head)

        with self._uploads.entry(upload):
            await client.feed(check, upload.host)

    async def _check_infer(self, data: bytes, metadata: Metadata) -> InferRequest:
        await self._pace.wait(len(data))
        request = read_infer_request(data)
        await self._models.check(request.head, metadata)
        return request
