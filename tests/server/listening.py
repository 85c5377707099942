"""Plain listener with Triton's own client: a gRPC stream per request, with the time of every response.

`Relay` cuts connections between a client and the server.
"""

import asyncio
import json
import queue
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tritonclient.grpc as grpc

from tests.patience import PATIENCE_S

TYPES = {"O": "BYTES", "f": "FP32", "i": "INT32"}
SILENCE_S = PATIENCE_S  # longer than that without a response is a hang


@dataclass
class Response:
    """A response: seconds since the request, event, samples, and flags."""

    at_s: float
    event: dict[str, Any] | None
    pcm: np.ndarray | None
    has_final_flag: bool


@dataclass
class Answer:
    """All responses to one request."""

    responses: list[Response] = field(default_factory=list)
    error: str | None = None
    took_s: float = 0.0

    @property
    def events(self) -> list[dict[str, Any]]:
        return [response.event for response in self.responses if response.event is not None]

    @property
    def pcm(self) -> np.ndarray:
        return np.concatenate([response.pcm for response in self.responses if response.pcm is not None] or [[]])

    @property
    def sounds(self) -> list[np.ndarray]:
        """Return the samples [n] of each response that has any."""
        return [response.pcm for response in self.responses if response.pcm is not None and len(response.pcm)]

    @property
    def codes(self) -> np.ndarray:
        """Return the codes [S, T] of all events."""
        return np.concatenate([np.array(event["codes"]) for event in self.events if "codes" in event], axis=1)

    @property
    def text(self) -> str:
        return "".join(event["text"] for event in self.events)

    @property
    def report(self) -> dict[str, Any]:
        return self.events[-1]["report"]


def tensor(name: str, value: Any) -> grpc.InferInput:
    if isinstance(value, str | bytes):
        value = np.array([value if isinstance(value, bytes) else value.encode()], object)
    elif isinstance(value, tuple):
        value = np.array(value, object)
    made = grpc.InferInput(name, list(value.shape), TYPES[value.dtype.kind])
    made.set_data_from_numpy(value)
    return made


class Stream:
    """A request in progress. `next` waits for a response, `cancel` cancels the request."""

    def __init__(self, port: int, empty_final: bool = True, **inputs: Any) -> None:
        self._queue: queue.Queue[tuple[float, Any, Any]] = queue.Queue()
        self._client = grpc.InferenceServerClient(f"localhost:{port}")
        self._client.start_stream(lambda result, error: self._queue.put((time.monotonic(), result, error)))
        tensors = [tensor(name, value) for name, value in inputs.items()]
        self._asked = time.monotonic()
        self._client.async_stream_infer("speech", tensors, enable_empty_final_response=empty_final)

    def next(self, timeout_s: float = SILENCE_S) -> Response:
        at, result, error = self._queue.get(timeout=timeout_s)
        if error is not None:
            raise error
        event, parameters = result.as_numpy("event"), result.get_response().parameters
        return Response(
            at - self._asked,
            None if event is None else json.loads(event[0]),
            result.as_numpy("pcm16") if result.as_numpy("pcm") is None else result.as_numpy("pcm"),
            parameters["triton_final_response"].bool_param,
        )

    def listen(self) -> Answer:
        """Return everything up to the final flag, the last event, or an error."""
        answer = Answer()
        try:
            while True:
                answer.responses.append(self.next())
                last = answer.responses[-1]
                if last.has_final_flag or (last.event is not None and last.event.get("is_final", False)):
                    break
        except grpc.InferenceServerException as error:
            answer.error = error.message()
        answer.took_s = time.monotonic() - self._asked
        self.cancel()
        return answer

    def cancel(self) -> None:
        self._client.stop_stream(cancel_requests=True)
        self._client.close()


def as_inputs(options: str | dict[str, Any] | None, inputs: dict[str, Any]) -> dict[str, Any]:
    """Return `inputs` with `options`, which are JSON or a mapping."""
    if options is None:
        return inputs
    return inputs | {"options": options if isinstance(options, str) else json.dumps(options)}


class Relay:
    """Port in front of the server whose connections can be cut.

    Attributes:
        cuts: Bytes that clients receive before all connections are cut, and between that and the next cut.
    """

    def __init__(self, port: int, *cuts: int) -> None:
        self._port, self._writers = port, set[asyncio.StreamWriter]()
        self.cuts = list(cuts)

    async def __aenter__(self) -> "Relay":
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cut all connections, and accept no others."""
        self._server.close()
        self.cut()

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers |= {writer, back}
        await asyncio.gather(self._copy(reader, back), self._copy(there, writer, is_counted=True))

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, is_counted: bool = False) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                is_cut = is_counted and bool(self.cuts) and len(data) >= self.cuts[0]
                writer.write(data[: self.cuts.pop(0)] if is_cut else data)
                await writer.drain()
                if is_cut:
                    self.cut()
                elif is_counted and self.cuts:
                    self.cuts[0] -= len(data)
        writer.close()
