"""In-process gRPC server that answers as the ensemble does, from a script of steps."""

import asyncio
import ctypes
import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

PROFILE = {
    "has_codes": True,
    "lookahead_frames": 1 << 20,  # a reply is only drawn anew as a whole
    "family": "tiny",
    "sample_rate": 16_000,
    "voices": ["slt", "rms"],
    "max_text_chars": 160,
    "max_audio_s": 9.6,
    "times_words": True,
    "tasks": [
        {
            "name": name,
            "needs": [needs],
            "also": [],
            "speaks": name == "tts",
            "answers": "user",
            "has_history": False,
            "system": [],
        }
        for name, needs in (("tts", "text"), ("asr", "audio"))
    ],
}
REPORT = {"finish_reason": "stop", "num_frames": 4, "guided_frames": 4, "guidance_scale": 1.5, "seed": 7}
REPORT["input_audio_s"] = 1.25  # for requests with recordings
# further fields of a report, from the client: the speech, whose level is constant, ends abruptly
CHECKED = {"faults": [{"fault": "abrupt_end", "start_s": 0.12}], "redrawn": 0, "redrawn_s": 0.0, "redraw_from": [[]]}


@dataclass
class Chunk:
    """Response with an event, and samples unless `num_samples` is None; it has the final flag if `is_last`."""

    index: int = 0
    num_samples: int | None = 640
    text: str = ""
    words: tuple[str, ...] = ()
    guidance_changes: tuple[tuple[float, bool], ...] = ()
    is_final: bool = False
    is_last: bool = False
    is_16_bit: bool = False
    codes: list[list[int]] | None = None
    pcm: np.ndarray | None = None  # int16 [num_samples], instead of a constant level
    session: str = ""
    aligned: tuple[tuple[str, float, float], ...] | None = None  # words with start and end; () if there are none
    more: dict[str, Any] = field(default_factory=dict)  # further fields of the event


@dataclass(frozen=True)
class Taken:
    """Answer to a part of a streamed text."""

    part: int


@dataclass(frozen=True)
class Samples:
    """Response of an ensemble for clients that clone voices."""

    waveform: tuple[float, ...]


@dataclass(frozen=True)
class EmptyFinal:
    """Response with only the final flag."""


@dataclass(frozen=True)
class Pause:
    seconds: float


@dataclass(frozen=True)
class Until:
    event: asyncio.Event


@dataclass(frozen=True)
class ErrorText:
    """Error sent as a response's text, as servers without status codes send it."""

    message: str


@dataclass(frozen=True)
class Abort:
    """Error that closes the stream with a status."""

    code: grpc.StatusCode
    message: str


Step = Chunk | Taken | Samples | EmptyFinal | Pause | Until | ErrorText | Abort
Request = dict[str, Any]


def response(step: Chunk) -> service_pb2.ModelStreamInferResponse:
    message = service_pb2.ModelStreamInferResponse()
    reply = message.infer_response
    reply.model_name = "speech"
    reply.parameters["triton_final_response"].bool_param = step.is_last
    duration_s = (step.num_samples or 0) / 16_000
    event = {
        "utterance": "u1",
        "index": step.index,
        "segment": "text" if step.num_samples is None else "audio",
        "text": step.text,
        "words": [{"word": word, "start_s": step.index * 0.04} for word in step.words]
        + [{"word": word, "start_s": start, "end_s": end, "score": 0.5} for word, start, end in step.aligned or ()],
        "guidance_changes": [{"start_s": change[0], "is_guided": change[1]} for change in step.guidance_changes],
        "start_s": step.index * 0.04,
        "duration_s": duration_s,
        "sample_rate": 16_000,
        "is_final": step.is_final,
    }
    if step.is_final:
        event["report"] = REPORT if step.aligned is None else REPORT | {"aligned": bool(step.aligned)}
    if step.codes is not None:
        event["codes"] = step.codes
    if step.session:
        event["session"] = step.session
    event |= step.more
    if step.num_samples is not None:
        pcm = (
            np.full(step.num_samples, 8192, np.int16) if step.is_16_bit else np.full(step.num_samples, 0.25, np.float32)
        )
        pcm = pcm if step.pcm is None else step.pcm
        name, datatype = ("pcm16", "INT16") if step.is_16_bit else ("pcm", "FP32")
        reply.outputs.add(name=name, datatype=datatype, shape=[step.num_samples])
        reply.raw_output_contents.append(pcm.tobytes())
    add_event(reply, event)
    return message


def add_event(reply: Any, event: dict[str, Any]) -> None:
    reply.outputs.add(name="event", datatype="BYTES", shape=[1])
    payload = np.array([json.dumps(event).encode()], np.object_)
    reply.raw_output_contents.append(serialize_byte_tensor(payload).item())


def read_request(message: service_pb2.ModelInferRequest, regions: Mapping[str, bytes]) -> Request:
    request: Request = {"model": message.model_name}
    inline = iter(message.raw_input_contents)
    for tensor in message.inputs:
        if "shared_memory_region" in tensor.parameters:
            size = tensor.parameters["shared_memory_byte_size"].int64_param
            raw = regions[tensor.parameters["shared_memory_region"].string_param][:size]
        else:
            raw = next(inline)
        dtypes = {"FP32": np.float32, "INT32": np.int32}
        is_bytes = tensor.datatype == "BYTES"
        array = deserialize_bytes_tensor(raw) if is_bytes else np.frombuffer(raw, dtypes[tensor.datatype])
        array = array.reshape(tensor.shape)
        request[tensor.name] = array.item() if array.size == 1 and tensor.name != "pcm_in" else array
    return request


@dataclass
class FakeServer(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Scripted server: `script` maps a request to the steps of its answer.

    It records requests, and counts ended and cancelled calls.

    Attributes:
        more_models: Models that are ready in addition to `speech`.
    """

    script: Callable[[Request], list[Step]]
    is_ready: bool = True
    name: str = "triton"
    more_models: tuple[str, ...] = ()
    profile: dict[str, Any] | None = field(default_factory=lambda: PROFILE)
    requests: list[Request] = field(default_factory=list)
    metadata: list[dict[str, str]] = field(default_factory=list)
    parameters: list[dict[str, str]] = field(default_factory=list)
    regions: dict[str, bytes] = field(default_factory=dict)
    num_cancelled: int = 0
    num_ended: int = 0
    may_infer: asyncio.Event | None = None
    num_played: int = 0
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    end: asyncio.Future[None] | None = None

    async def start(self) -> str:
        self.server = grpc.aio.server()
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self.server)
        port = self.server.add_insecure_port("127.0.0.1:0")
        await self.server.start()
        return f"127.0.0.1:{port}"

    async def stop(self) -> None:
        """Stop immediately. Unlike gRPC's server, which would crash, it may be stopped repeatedly."""
        if self.end is None:
            self.end = asyncio.ensure_future(self.server.stop(0))
        await asyncio.shield(self.end)

    async def ServerReady(self, request: Any, context: Any) -> service_pb2.ServerReadyResponse:
        return service_pb2.ServerReadyResponse(ready=True)

    async def ServerMetadata(self, request: Any, context: Any) -> service_pb2.ServerMetadataResponse:
        return service_pb2.ServerMetadataResponse(name=self.name)

    async def ModelReady(self, request: Any, context: Any) -> service_pb2.ModelReadyResponse:
        is_there = request.name in ("speech", *self.more_models) and request.version in ("", "1")
        return service_pb2.ModelReadyResponse(ready=self.is_ready and is_there)

    async def ModelConfig(self, request: Any, context: Any) -> service_pb2.ModelConfigResponse:
        answer = service_pb2.ModelConfigResponse()
        if self.profile is not None:
            answer.config.parameters["profile"].string_value = json.dumps(self.profile)
        return answer

    async def SystemSharedMemoryRegister(
        self, request: Any, context: Any
    ) -> service_pb2.SystemSharedMemoryRegisterResponse:
        self.regions[request.name] = (Path("/dev/shm") / request.key.removeprefix("/")).read_bytes()
        return service_pb2.SystemSharedMemoryRegisterResponse()

    async def SystemSharedMemoryUnregister(
        self, request: Any, context: Any
    ) -> service_pb2.SystemSharedMemoryUnregisterResponse:
        del self.regions[request.name]
        return service_pb2.SystemSharedMemoryUnregisterResponse()

    async def CudaSharedMemoryRegister(
        self, request: Any, context: Any
    ) -> service_pb2.CudaSharedMemoryRegisterResponse:
        address = int.from_bytes(request.raw_handle, "little")  # as the fake runtime makes its handles
        self.regions[request.name] = ctypes.string_at(address, request.byte_size)
        return service_pb2.CudaSharedMemoryRegisterResponse()

    async def CudaSharedMemoryUnregister(
        self, request: Any, context: Any
    ) -> service_pb2.CudaSharedMemoryUnregisterResponse:
        del self.regions[request.name]
        return service_pb2.CudaSharedMemoryUnregisterResponse()

    async def ModelInfer(self, request: Any, context: Any) -> service_pb2.ModelInferResponse:
        self.parameters.append({name: value.string_param for name, value in request.parameters.items()})
        try:
            if self.may_infer is not None:
                await self.may_infer.wait()
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        self.num_ended += 1
        return service_pb2.ModelInferResponse()

    async def ModelStreamInfer(
        self, messages: AsyncIterator[service_pb2.ModelInferRequest], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[service_pb2.ModelStreamInferResponse]:
        self.metadata.append(dict(context.invocation_metadata()))
        try:
            async for message in messages:
                self.requests.append(read_request(message, self.regions))
                self.parameters.append({name: value.string_param for name, value in message.parameters.items()})
                for step in self.script(self.requests[-1]):
                    answer = await self.play(step, context)
                    self.num_played += 1
                    if answer:
                        answer.infer_response.id = message.id
                        yield answer
            self.num_ended += 1
        except (asyncio.CancelledError, GeneratorExit):  # GeneratorExit if gRPC was still sending the last response
            self.num_cancelled += 1
            self.cancelled.set()
            raise

    async def play(self, step: Step, context: grpc.aio.ServicerContext) -> Any:
        match step:
            case Chunk():
                return response(step)
            case Samples(waveform):
                message = service_pb2.ModelStreamInferResponse()
                message.infer_response.outputs.add(name="waveform", datatype="FP32", shape=[len(waveform)])
                message.infer_response.raw_output_contents.append(np.array(waveform, np.float32).tobytes())
                return message
            case EmptyFinal():
                message = service_pb2.ModelStreamInferResponse()
                message.infer_response.parameters["triton_final_response"].bool_param = True
                return message
            case Taken(part):
                message = service_pb2.ModelStreamInferResponse()
                add_event(message.infer_response, {"utterance": "u1", "part": part})
                return message
            case Until(event):
                await event.wait()
            case Pause(seconds):
                await asyncio.sleep(seconds)
            case ErrorText(text):
                return service_pb2.ModelStreamInferResponse(error_message=text)
            case Abort(code, text):
                await context.abort(code, text)
        return None
