"""Client for vLLM's engine processes: starts them, sends requests and distributes outputs.

This module imports neither vLLM nor torch. It uses the protocol of vLLM's own clients: MessagePack over ZMQ, with each
request and output encoded as an array of its fields.
"""

import asyncio
import os
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import zmq

from stretto.config import EngineConfig
from stretto.engine.host import StartedEngines, StartRequest, connect_host
from stretto.engine.reply_rules import TextUpdate, updates_to_extra_args
from stretto.errors import StrettoError
from stretto.hops import Hop, stamp

# vLLM's EngineCoreRequestType
ADD = b"\x00"
ABORT = b"\x01"
UTILITY = b"\x03"
DEAD = b"ENGINE_CORE_DEAD"
FINISH_REASONS = ("stop", "length", "abort", "error", "repetition")  # vLLM's FinishReason
READY_S = 60.0  # maximum time from the end of an engine's start to its first message
END_S = 15.0  # longer than a host waits for its engines
APPEND_S = 0.002  # interval between messages with further ids, each of which costs as much as a short request


class EngineOutput(msgspec.Struct, array_like=True):
    """Output of one request in a step: the leading fields of vLLM's `EngineCoreOutput`."""

    request_id: str
    new_token_ids: list[int]
    new_logprobs: Any = None
    new_prompt_logprobs_tensors: Any = None
    pooling_output: Any = None
    finish_reason: int | None = None


class CallOutput(msgspec.Struct, array_like=True):
    """Leading fields of vLLM's `UtilityOutput`: the end of a call of an engine's method."""

    call_id: int
    failure_message: str | None = None


class EngineOutputs(msgspec.Struct, array_like=True):
    """Leading fields of vLLM's `EngineCoreOutputs`."""

    engine_index: int = 0
    outputs: list[EngineOutput] = []
    scheduler_stats: msgspec.Raw = msgspec.Raw()
    timestamp: msgspec.Raw = msgspec.Raw()
    utility_output: CallOutput | None = None


class EngineReady(msgspec.Struct):
    """Fields of vLLM's `EngineCoreReadyResponse` that admission needs."""

    max_model_len: int
    num_gpu_blocks: int
    block_size: int
    max_num_seqs: int


class Output(NamedTuple):
    """New ids of a request.

    Attributes:
        states: Hidden states of the prompt that a speaker (`Speaker`) reads, float32 [n, H], or codes and samples of
            first frames, float32 [n]; None unless they have arrived since the last output.
    """

    ids: list[int]
    finish_reason: str | None
    states: np.ndarray | None = None


def read_tensor(record: Any, frames: Sequence[bytes]) -> np.ndarray:
    """Return a float32 tensor from vLLM's encoding: a dtype, a shape, and bytes or the index of the frame with them."""
    dtype, shape, data = record
    return np.frombuffer(frames[data] if isinstance(data, int) else data.data, dtype).reshape(shape)


class _Request:
    """Request in flight, with its output that has not been read yet."""

    def __init__(self, request_id: str, engine: bytes) -> None:
        self.id = request_id
        self.engine = engine
        self._ids: list[int] = []
        self.finish_reason: str | None = None
        self._states: np.ndarray | None = None
        self._error: StrettoError | None = None
        self._waiter: asyncio.Future[None] | None = None

    def push(self, ids: list[int], finish_reason: str | None, states: np.ndarray | None = None) -> None:
        """Add an output and wake the task that waits in `pop`."""
        self._ids += ids
        self.finish_reason = finish_reason
        self._states = self._states if states is None else states
        self._wake()

    def fail(self, error: StrettoError) -> None:
        """Make `pop` raise `error`."""
        self._error = error
        self._wake()

    async def pop(self) -> Output:
        """Wait until there is unread output, and return all of it."""
        while not self._ids and self.finish_reason is None and self._states is None and self._error is None:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self._error is not None:
            raise self._error
        ids = self._ids
        self._ids = []
        states = self._states
        self._states = None
        return Output(ids, self.finish_reason, states)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class EngineConnection:
    """Connection to vLLM's engine processes, which a separate host process starts and stops.

    Attributes:
        readies: Sizes reported by each engine, keyed by ZMQ identity; known after `wait`.
        started: Pids of the engine processes, and their limits; known after `wait`.
    """

    readies: dict[bytes, EngineReady]
    started: StartedEngines

    def __init__(self, config: EngineConfig, stats: Path) -> None:
        """Begin to start the engines."""
        self._host, self._host_pid = connect_host(config)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._folder = Path(tempfile.mkdtemp(prefix="engine_", dir=os.environ.get("VLLM_RPC_BASE_PATH")))
        self._context = zmq.Context()
        self._context.linger = 0  # otherwise it would wait for engines that have exited
        self._inputs = self._context.socket(zmq.ROUTER)
        self._outputs = self._context.socket(zmq.PULL)
        inputs, outputs = (f"ipc://{self._folder / name}" for name in ("inputs", "outputs"))
        try:
            for socket, address in ((self._inputs, inputs), (self._outputs, outputs)):
                socket.set_hwm(0)
                socket.bind(address)
            self._number = config.engine_args.get("data_parallel_size", 1)
            request = StartRequest(config, str(stats), inputs, outputs, dict(os.environ), os.getpid())
            with suppress(OSError):  # if the host has ended, `wait` reports it
                self._host.send(request)
        except BaseException:
            self.close()
            raise

    def wait(self) -> "EngineConnection":
        """Wait until the engines are ready, and return this connection (see `SpeechLLM.launch` for the exceptions)."""
        try:
            self.started = self._started()
            # sorted, because engines report in any order and requests go to the first of equally loaded ones
            self.readies = dict(sorted(self._ready() for _ in range(self._number)))
        except BaseException:
            self.close()
            raise
        return self

    def _started(self) -> StartedEngines:
        try:
            answer = self._host.recv()
        except (EOFError, OSError):
            raise StrettoError("the engine's host process ended during the start; see the log") from None
        if isinstance(answer, Exception):
            raise answer
        started: StartedEngines = answer
        return started

    def _ready(self) -> tuple[bytes, EngineReady]:
        if not self._inputs.poll(round(READY_S * 1000)):
            raise StrettoError(f"an engine has not reported its sizes within {READY_S:g} s of its start")
        engine, record = self._inputs.recv_multipart()
        return engine, msgspec.msgpack.decode(record, type=EngineReady)

    def send(self, engine: bytes, message_type: bytes, record: bytes) -> None:
        """Send a message (ADD, ABORT or UTILITY, with a record in MessagePack) to an engine, without waiting."""
        self._inputs.send_multipart([engine, message_type, record])

    def listen(self, on_message: Callable[..., None]) -> None:
        """Call `on_message` on the running event loop with each message's frames, or with DEAD if the host exits."""
        self._loop = asyncio.get_running_loop()
        self._on_message = on_message
        self._loop.add_reader(self._outputs.FD, self._read)
        self._loop.add_reader(self._host.fileno(), self._end)
        self._read()  # the descriptor signals only changes

    def _read(self) -> None:
        with suppress(zmq.Again):
            while True:
                self._on_message(*self._outputs.recv_multipart(zmq.NOBLOCK))

    def _end(self) -> None:
        assert self._loop is not None
        self._loop.remove_reader(self._host.fileno())
        self._on_message(DEAD)

    def close(self) -> None:
        """Stop the engines."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._outputs.FD)
            self._loop.remove_reader(self._host.fileno())
        with suppress(OSError):
            self._host.send(None)
            self._host.poll(END_S)  # the host closes the connection after the engines have exited
        self._host.close()
        if self._host_pid is not None:
            os.kill(self._host_pid, signal.SIGKILL)  # no effect unless it hangs
            os.waitpid(self._host_pid, 0)
            self._host_pid = None
        self._context.destroy()
        shutil.rmtree(self._folder, ignore_errors=True)


class EngineClient:
    """Client that sends requests to vLLM's engines and tracks those in flight.

    Attributes:
        ready: Limits that an engine reports, such as `max_model_len`; they are the same for all engines.
    """

    def __init__(self, connection: EngineConnection) -> None:
        self._connection = connection
        self.started = connection.started
        self.ready = next(iter(connection.readies.values()))
        self.num_engines = len(connection.readies)
        self._load = dict.fromkeys(connection.readies, 0)  # requests in flight
        self._requests: dict[str, _Request] = {}
        self._ids: dict[str, str] = {}  # internal ids by caller's id
        self._numbers = count()
        self._calls: dict[int, asyncio.Future[None]] = {}
        self._is_listening = False
        self._appended: dict[str, bytearray] = {}  # ids that have not been sent, by internal id
        self._completed: set[str] = set()
        self._flushing: asyncio.Handle | None = None
        self._flushed_s = float("-inf")
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(EngineOutputs)

    @property
    def num_requests(self) -> int:
        """Number of requests in flight."""
        return len(self._requests)

    def has(self, request_id: str) -> bool:
        """Return True if the engines have an unfinished request with this id."""
        return request_id in self._ids

    async def generate(
        self, ids: Sequence[int], fields: dict[str, Any], request_id: str, adapter: tuple[str, int, str] | None = None
    ) -> AsyncGenerator[Output, None]:
        """Yield the output of a request. Closing the iterator aborts the request.

        Args:
            request_id: Id that is unique among the requests in flight.
            adapter: Leading fields of vLLM's `LoRARequest`, or None.

        Raises:
            StrettoError: If an engine has exited.
        """
        self._listen()
        engine = min(self._load, key=lambda identity: self._load[identity])
        # a number, because outputs of an aborted request with the same id may still arrive
        request = _Request(f"{request_id}-{next(self._numbers)}", engine)
        self._requests[request.id] = request
        self._ids[request_id] = request.id
        self._load[engine] += 1
        try:
            self._send(request, ids, fields, adapter)
            del fields
            output = await request.pop()
            while output.finish_reason is None:
                yield output
                output = await request.pop()
            yield output
        finally:
            self._load[engine] -= 1
            self._abort(request)

    async def call(self, method: str, *arguments: Any) -> None:
        """Call a method of all engines and wait for it, or raise StrettoError if it fails or an engine exits."""
        self._listen()
        loop = asyncio.get_running_loop()
        ends = []
        for engine in self._load:
            number = next(self._numbers)
            self._calls[number] = loop.create_future()
            ends.append(self._calls[number])
            self._connection.send(engine, UTILITY, self._encoder.encode([0, number, method, arguments]))
        for error in await asyncio.gather(*ends, return_exceptions=True):
            if error is not None:
                raise error

    def append(self, request_id: str, ids: np.ndarray, is_last: bool) -> None:
        """Send further ids of a request's streamed text or audio to its engine, int32 [n], row by row.

        Nothing is sent if the request has ended. Ids that are appended within APPEND_S, for any requests, are sent to
        an engine in one message.
        """
        if not self.has(request_id):
            return
        name = self._ids[request_id]
        self._appended.setdefault(name, bytearray()).extend(ids.tobytes())
        if is_last:
            self._completed.add(name)
        if self._flushing is None:
            loop = asyncio.get_running_loop()
            left_s = self._flushed_s + APPEND_S - loop.time()
            self._flushing = loop.call_later(left_s, self._flush) if left_s > 0 else loop.call_soon(self._flush)

    def _flush(self) -> None:
        appended = self._appended
        completed = self._completed
        self._flushing = None
        self._appended = {}
        self._completed = set()
        self._flushed_s = asyncio.get_running_loop().time()
        updates: dict[bytes, list[TextUpdate]] = {}
        for name, ids in appended.items():
            if name in self._requests:
                update = TextUpdate(name, np.frombuffer(ids, np.int32), name in completed)
                updates.setdefault(self._requests[name].engine, []).append(update)
        for batch in updates.values():
            fields = {"max_tokens": 1, "extra_args": updates_to_extra_args(batch)}
            self._send(self._requests[batch[0].request_id], [0], fields)

    def abort(self, request_id: str) -> None:
        """Abort a request, whose iterator ends with the finish reason `abort`."""
        if self.has(request_id):
            request = self._requests[self._ids[request_id]]
            self._abort(request)
            request.push([], "abort")

    def receive(self, message: bytes, *tensors: bytes) -> None:
        """Distribute the outputs in a message from an engine, whose tensors may be in further frames."""
        if message == DEAD:
            for request in list(self._requests.values()):
                self._forget(request)
                request.fail(StrettoError("the engine has ended"))
            for number in list(self._calls):
                self._end_call(CallOutput(number, "the engine has ended"))
            return
        stamp(Hop.ROW_ARRIVES)
        decoded = self._decoder.decode(message)
        if decoded.utility_output is not None:
            self._end_call(decoded.utility_output)
        for output in decoded.outputs:
            answered = self._requests.get(output.request_id)
            if answered is None:
                continue  # the request was aborted
            reason = None if output.finish_reason is None else FINISH_REASONS[output.finish_reason]
            if reason is not None:
                self._forget(answered)
            record = output.pooling_output
            states = None
            if record is not None:
                states = read_tensor(record, (message, *tensors))
            answered.push(output.new_token_ids, reason, states)

    def shutdown(self) -> None:
        """Stop the engines."""
        self._connection.close()

    def _listen(self) -> None:
        """Begin to receive the engines' messages on the running event loop, unless that has begun."""
        if not self._is_listening:
            self._is_listening = True
            self._connection.listen(self.receive)

    def _end_call(self, output: CallOutput) -> None:
        end = self._calls.pop(output.call_id, None)
        if end is None or end.done():
            return
        if output.failure_message is None:
            end.set_result(None)
        else:
            end.set_exception(StrettoError(output.failure_message))

    def _send(
        self, request: _Request, ids: Sequence[int], fields: dict[str, Any], adapter: Sequence[str | int] | None = None
    ) -> None:
        stamp(Hop.ENGINE_IS_ASKED)
        # leading fields of vLLM's EngineCoreRequest
        record = [request.id, ids, None, fields, None, time.time(), adapter, None, None]
        self._connection.send(request.engine, ADD, self._encoder.encode(record))

    def _abort(self, request: _Request) -> None:
        if self._forget(request):
            self._connection.send(request.engine, ABORT, self._encoder.encode([request.id]))

    def _forget(self, request: _Request) -> bool:
        """Remove a request from the requests in flight, or return False if it is not in flight."""
        if self._requests.pop(request.id, None) is None:
            return False
        del self._ids[request.id.rpartition("-")[0]]
        return True
