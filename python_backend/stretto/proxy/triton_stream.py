"""Client streams, and the Triton streams that answer them.

A stream to Triton is not cancelled when its client disconnects (see `stretto.disconnects`).

Calls whose client is still sending are limited in number and memory, and large requests in their forwarding rate.
"""

import asyncio
import ctypes
import gc
import os
import re
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import grpc
from tritonclient.grpc.service_pb2 import ModelInferRequest, ModelStreamInferResponse

from stretto.errors import FULL, UNAVAILABLE
from stretto.hops import Hop, stamp
from stretto.proxy.infer_request import SHOWN, BadRequest, with_origin
from stretto_contract.limits import eviction_order

T = TypeVar("T")
AGAIN = "a process of the server has ended and is being restarted; try again"


class Restarting(Exception):
    """A call was ended or refused because a model is being restarted."""

    def __init__(self) -> None:
        super().__init__(f"{UNAVAILABLE}: {AGAIN}")


class CallGate:
    """Gate for calls; closing it refuses new calls and ends those in flight."""

    def __init__(self, report_dead_stub: Callable[[str], None] = lambda _: None) -> None:
        self.report_dead_stub = report_dead_stub
        self.is_closed = self._spares_answered = False
        self._calls: dict[asyncio.Task[Any], Callable[[], bool]] = {}
        self._ended: set[asyncio.Task[Any]] = set()

    async def guard(self, call: Coroutine[Any, Any, T], is_answered: Callable[[], bool] = lambda: False) -> T:
        """Await a call; if the gate is closed, or closes meanwhile, cancel the call and raise Restarting.

        The gate may spare calls for which `is_answered` returns True: Triton has begun to answer all of their requests.
        """
        if self.is_closed and not (self._spares_answered and is_answered()):
            call.close()
            raise Restarting
        task = asyncio.create_task(call)
        self._calls[task] = is_answered
        try:
            return await task
        except asyncio.CancelledError:
            if task not in self._ended:
                raise
            raise Restarting from None
        finally:
            del self._calls[task]
            self._ended.discard(task)

    def open(self) -> None:
        self.is_closed = False

    def close(self, spares_answered: bool) -> None:
        """Refuse new calls and end those in flight.

        With `spares_answered`, calls that Triton has begun to answer continue.
        """
        self.is_closed = True
        self._spares_answered = spares_answered
        for task, is_answered in self._calls.items():
            if not (spares_answered and is_answered()):
                self._ended.add(task)
                task.cancel()


STUB_HAS_ENDED = "' is not healthy."  # as in "Stub process 'acoustic_decoder_0_0' is not healthy."
# Matches the entire message, so that client text cannot imitate it; the group captures the model's name.
GIVEN_UP = re.compile(
    r"(?:\[request id: [^]]{0,128}\] )?(?:in ensemble '\w+', )?Stub process '(\w+)_\d+_\d+' is not healthy\."
)
GONE = ("unix:", "ocket closed", "onnection reset", "roken pipe")  # parts of gRPC's messages for an unreachable server
BROKEN_OFF = "Internal error from Core"  # gRPC's message for a write to an ended call; the cause is lost

Report = Callable[[str], None]  # reports to the launcher a model whose stub Triton considers dead


def reworded(response: bytes, report_dead_stub: Report) -> bytes:
    """Return a serialised ModelStreamInferResponse with errors about dead stubs reworded for the client.

    Such errors may arrive before the launcher has noticed that the stub is dead.
    """
    if STUB_HAS_ENDED.encode() not in response:
        return response
    reworded = ModelStreamInferResponse.FromString(response)
    reworded.error_message = _reworded_message(reworded.error_message, report_dead_stub)
    return reworded.SerializeToString()


def _reworded_message(message: str, report_dead_stub: Report) -> str:
    """Return an error message, reworded if it is about a stub that Triton considers dead."""
    if match := GIVEN_UP.fullmatch(message):
        report_dead_stub(match[1])
    return str(Restarting()) if message.endswith(STUB_HAS_ENDED) else message


def client_status(error: grpc.aio.AioRpcError, report_dead_stub: Report) -> tuple[grpc.StatusCode, str]:
    """Return the status code and message with which the client's call ends."""
    code = error.code()
    details = _reworded_message(error.details() or "", report_dead_stub)
    is_gone = code is grpc.StatusCode.UNAVAILABLE and any(words in details for words in GONE)
    if is_gone or details == BROKEN_OFF:
        return grpc.StatusCode.UNAVAILABLE, f"{UNAVAILABLE}: the server is starting"
    return code, details


DEFAULT_VERSION = "1"  # version of a request that names none


class BackgroundTasks:
    """Tasks that run to completion even if the task that started them has ended."""

    def __init__(self) -> None:
        self._tasks = set[asyncio.Task[Any]]()

    def start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Start a task. Its exception is never logged, and is raised only where the task is awaited."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # retrieve the exception, so that asyncio does not log it
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task


class TritonStream:
    """ModelStreamInfer call to Triton, which the first request opens.

    Args:
        number: Number that the models use to look up whether the client has disconnected.
        note: Called with each serialised response.

    Attributes:
        model: (name, version) of the model of all requests of the stream; None before the first request.
    """

    def __init__(
        self, open_call: Callable[[], Any], number: int, note: Callable[[bytes], object] = lambda _: None
    ) -> None:
        self.number = number
        self._note = note
        self.model: tuple[str, str] | None = None
        self._open_call = open_call
        self._call: Any = None
        self._has_begun = asyncio.Event()  # or has ended without a request
        self._num_asked = 0
        self._has_answered = False
        self._reading: asyncio.Future[Any] | None = None
        self._writing: asyncio.Future[Any] | None = None

    @property
    def is_over(self) -> bool:
        """True if Triton has ended the stream, it was cancelled, or it has had no request."""
        return self._call is None or bool(self._call.done())

    @property
    def is_answered(self) -> bool:
        """True if Triton has begun to answer the request of a stream; False if there are several."""
        return self._has_answered and self._num_asked == 1

    def record_model(self, head: ModelInferRequest) -> None:
        """Record a request's model; raise BadRequest if the stream's earlier requests differ.

        WORKAROUND(triton server 2.51): it writes responses of decoupled and other models without synchronisation. gRPC
        aborts the process if two writes overlap.
        """
        name_and_version = head.model_name, head.model_version or DEFAULT_VERSION
        first = self.model = self.model or name_and_version
        if name_and_version != first:
            expected, got = (
                f"{name[:SHOWN]!r}, version {version[:SHOWN]}" for name, version in (first, name_and_version)
            )
            raise BadRequest(f"model_name: expected {expected}, as before on this stream, got {got}", head.id)

    async def write(self, request: bytes) -> None:
        """Send a serialised request; raise gRPC's error if the stream is over."""
        self._num_asked += 1
        if self._call is None:
            self._call = self._open_call()
            self._has_begun.set()
        await self._written(self._call.write(request))

    async def end(self) -> None:
        """Half-close the stream: no further request follows."""
        self._has_begun.set()
        if self._call is not None:
            await self._written(self._call.done_writing())

    async def _written(self, writing: Awaitable[None]) -> None:
        self._writing = asyncio.ensure_future(writing)
        await asyncio.shield(self._writing)

    async def read(self) -> bytes | None:
        """Return the next serialised response, or None at the end."""
        await self._has_begun.wait()
        if self._call is None:
            return None
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._call.read())
        response = await asyncio.shield(self._reading)
        self._reading = None
        if response is grpc.aio.EOF:
            return None
        self._has_answered = True
        self._note(response)
        return bytes(response)

    async def drain(self) -> None:
        """Half-close the stream and discard its remaining responses; raise AioRpcError if it ends with an error."""
        if self._writing is not None:
            await asyncio.gather(self._writing, return_exceptions=True)
        await self.end()
        while await self.read() is not None:
            pass

    def cancel(self) -> None:
        if self._call is not None:
            self._call.cancel()


Context = Any  # grpc.aio.ServicerContext with messages of bytes
Check = Callable[[bytes], Awaitable[None]]


class ClientStream:
    """Forwards the requests of a client's stream to Triton, and the responses back."""

    def __init__(self, stream: TritonStream, context: Context, report_dead_stub: Report) -> None:
        self.stream = stream
        self._context = context
        self._report_dead_stub = report_dead_stub
        self._writing = asyncio.Lock()

    async def feed(self, check: Check, host: str) -> None:
        """Forward valid requests until the client half-closes.

        Invalid requests are answered with an error, and the stream stays open. While a response waits for the client to
        read it, no further request is read, because it would only be buffered.
        """
        while True:
            async with self._writing:
                pass
            request = await self._context.read()
            if request is grpc.aio.EOF:
                break
            stamp(Hop.PROXY_READS)
            refusal = await self._pass_on(request, check, host)
            del request
            if refusal is not None:
                await self._write(refusal)
        await self.stream.end()

    async def _pass_on(self, request: bytes, check: Check, host: str) -> bytes | None:
        """Check and forward a request; if it is invalid, return a serialised error response instead."""
        try:
            await check(request)
        except BadRequest as error:
            response = ModelStreamInferResponse(error_message=error.client_message)
            response.infer_response.id = error.request_id
            return response.SerializeToString()
        stamp(Hop.PROXY_FORWARDS)
        await self.stream.write(with_origin(request, host, self.stream.number))
        return None

    async def answer(self) -> None:
        """Forward Triton's responses until the stream ends; raise AioRpcError if it ends with an error."""
        while (response := await self.stream.read()) is not None:
            stamp(Hop.PROXY_READS_ANSWER)
            await self._write(reworded(response, self._report_dead_stub))

    async def _write(self, response: bytes) -> None:
        async with self._writing:
            await self._context.write(response)


LARGE_BYTES = 1 << 20  # smaller messages never wait
BYTES_PER_CORE_S = 10_000_000
MAX_WAITING_BYTES = 256 << 20


class Pace:
    """Rate limiter that forwards large messages one at a time, at a fixed number of bytes per second.

    Args:
        bytes_per_s: Forwarding rate; None for BYTES_PER_CORE_S per core.
        small_bytes: Messages of at most this size never wait.
    """

    def __init__(
        self,
        bytes_per_s: float | None = None,
        max_waiting_bytes: int = MAX_WAITING_BYTES,
        small_bytes: int = LARGE_BYTES,
    ) -> None:
        self._small_bytes = small_bytes
        self._bytes_per_s = bytes_per_s or BYTES_PER_CORE_S * len(os.sched_getaffinity(0))
        self._max_waiting_bytes = max_waiting_bytes
        self._num_waiting_bytes = 0
        self._turn = asyncio.Lock()
        self._next_s = 0.0

    async def wait(self, num_bytes: int) -> None:
        """Wait until a message of this size may be forwarded; raise BadRequest if too many bytes are waiting."""
        if num_bytes <= self._small_bytes:
            return
        if self._num_waiting_bytes + num_bytes > self._max_waiting_bytes:
            raise BadRequest(
                f"{self._num_waiting_bytes} bytes of large requests are already waiting, at most "
                f"{self._max_waiting_bytes} may wait, and this one has {num_bytes} bytes",
                category=FULL,
            )
        self._num_waiting_bytes += num_bytes
        try:
            async with self._turn:
                loop = asyncio.get_running_loop()
                await asyncio.sleep(self._next_s - loop.time())
                self._next_s = loop.time() + num_bytes / self._bytes_per_s
        finally:
            self._num_waiting_bytes -= num_bytes


MAX_CALLS = 2048  # calls whose client may still send: half of one host's limit of calls
MAX_RESIDENT_BYTES = 1 << 30
KEPT_BYTES = 64 << 20  # free memory that malloc may keep
# minimum number of polls between returns of free memory
CHECK_INTERVAL_S = 0.25
NUM_CHECKS = 12
ENDED = f"{FULL}: too many bytes are being sent at once, and this call was incomplete"


@dataclass(slots=True, eq=False)
class Upload:
    """Call whose client may still be sending.

    Attributes:
        num_sent: Number of complete messages received.
        since: Monotonic time of the last complete message, or of the start of the call.
        is_ended: True if the call was ended because of a limit.
    """

    end: Callable[[], object]
    host: str
    num_sent: int = 0
    since: float = field(default_factory=time.monotonic)
    is_ended: bool = False

    def note_message(self) -> None:
        self.num_sent += 1
        self.since = time.monotonic()


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def give_back() -> None:
    """Collect the garbage of ended calls, and return free memory to the system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


class Uploads:
    """Registry of calls whose client may still be sending.

    If there are too many, a call of the host with the most calls is ended. A host's calls without a complete message
    are ended before its other calls, and older calls before newer ones. If they use too much memory, a quarter of the
    calls without a complete message are ended in the same order.
    """

    def __init__(
        self,
        max_calls: int = MAX_CALLS,
        max_resident_bytes: int = MAX_RESIDENT_BYTES,
        resident: Callable[[], int] = resident_bytes,
    ) -> None:
        self._max_calls = max_calls
        self._max_resident_bytes = max_resident_bytes
        self._resident = resident
        self._open: set[Upload] = set()
        self._seen = self._at_start = resident()
        self._checks = 0

    @contextmanager
    def entry(self, upload: Upload) -> Iterator[None]:
        """Register a call during the `with` block.

        Above the limit, one call is ended: this one only if there is no other choice.
        """
        self._open.add(upload)
        if len(self._open) > self._max_calls:
            self._end(self._open, 1, last=upload)
        try:
            yield
        finally:
            self._open.discard(upload)

    async def watch(self) -> None:
        while True:
            await asyncio.sleep(CHECK_INTERVAL_S)
            self.poll()

    def poll(self) -> None:
        """Return free memory to the system when traffic is idle; end calls if memory use is too high.

        If this process still uses too much memory, a quarter of the calls without a complete message are ended. If
        there are no such calls, a quarter of all calls are ended.
        """
        before = self._seen
        self._seen = self._resident()
        self._checks += 1
        is_much = self._seen > self._max_resident_bytes
        is_left = before == self._seen > self._at_start + KEPT_BYTES and self._checks >= NUM_CHECKS
        if is_much or is_left:
            give_back()
            self._seen = self._resident()
            self._checks = 0
            if self._seen > self._max_resident_bytes:
                suspects = {upload for upload in self._open if not upload.num_sent} or self._open
                self._end(suspects, 1 + len(suspects) // 4)

    def _end(self, among: set[Upload], count: int, last: Upload | None = None) -> None:
        order = eviction_order(
            among, lambda upload: upload.host, lambda upload: (upload is last, upload.num_sent > 0, upload.since)
        )
        for upload in islice(order, count):
            self._open.discard(upload)
            upload.is_ended = True
            upload.end()
