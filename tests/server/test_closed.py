"""Hostile requests: none ends a process of the server, and private interfaces are closed."""

import json
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from stretto.launcher.processes import all_processes, descendants
from tests.hostile_folder import executed
from tests.server.conftest import Server
from tests.tiers import by_night

pytestmark = pytest.mark.server

WAIT_S = 120
NUM_ASIDES = 1500
TEXT = ("text", "BYTES", [1], struct.pack("<I", 2) + b"hi")


def infer(model: str, *tensors: tuple[str, str, list[int], bytes], classified: bool = False) -> Any:
    request = service_pb2.ModelInferRequest(model_name=model)
    for name, datatype, shape, raw in tensors:
        request.inputs.add(name=name, datatype=datatype, shape=shape)
        request.raw_input_contents.append(raw)
    if classified:
        request.outputs.add(name="event").parameters["classification"].int64_param = 3
    return request


def over_grpc(server: Server, request: Any, *metadata: tuple[str, str]) -> str:
    """Return all responses as text."""
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc}", [("grpc.max_send_message_length", -1)]) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        try:
            return str(list(stub.ModelStreamInfer(iter([request]), timeout=WAIT_S, metadata=metadata)))
        except grpc.RpcError as error:
            return str(error.details())


def over_http(server: Server, path: str, body: bytes) -> str:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", server.http), timeout=WAIT_S) as connection:
        try:
            connection.sendall(head + body)
            return connection.recv(4096).decode()
        except OSError as error:  # refused before it was sent
            return repr(error)


def beside_answers(server: Server, aside: Any) -> str:
    """Send many requests that are answered immediately, so that some coincide with the writing of other responses."""
    long = ("text", "BYTES", [1], struct.pack("<I", 150) + b"The garden door is open. " * 6)

    def requests() -> Iterator[Any]:
        yield from [infer("speech", long)] * 8
        for _ in range(NUM_ASIDES):
            time.sleep(0.0005)
            yield aside

    with grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        answers = list(stub.ModelStreamInfer(requests(), timeout=WAIT_S))
    refused = [each.error_message for each in answers if each.error_message]
    assert len(refused) >= NUM_ASIDES
    return refused[-1]


def versioned(version: str) -> Any:
    request = infer("speech", TEXT)
    request.model_version = version
    return request


PCM = ("pcm_in", "FP32")
VAST = json.dumps({"inputs": [{"name": "pcm_in", "datatype": "FP32", "shape": [10**15], "data": [0.0]}]}).encode()
DEEP = b'{"text":' + b"[" * 5_000_000
CRASHING_HEADER = ("triton_grpc_error", "true")
ATTACKS: dict[str, Callable[[Server], str]] = {
    "a dimension below zero": lambda s: over_grpc(s, infer("speech", (*PCM, [-(2**63)], b""))),
    "a shape that overflows": lambda s: over_grpc(s, infer("acoustic_decoder", ("codes", "INT32", [2**62, 4], b""))),
    "a shape over HTTP": lambda s: over_http(s, "/v2/models/preprocessor/infer", VAST),
    "nested JSON over HTTP": lambda s: over_http(s, "/v2/models/speech/generate_stream", DEEP),
    "nested JSON for the log": lambda s: over_http(s, "/v2/logging", DEEP),
    "a classification of strings": lambda s: over_grpc(s, infer("speech", TEXT, classified=True)),
    "an error and the header for its status": lambda s: over_grpc(s, infer("speech"), CRASHING_HEADER),
    "a length that lies": lambda s: over_grpc(s, infer("speech", ("text", "BYTES", [1], b"\xff\xff\xff\xffx"))),
    "ten million files": lambda s: over_grpc(s, infer("speech", ("audio", "BYTES", [10**7], bytes(4 * 10**7)))),
    "no such model beside an answer": lambda s: beside_answers(s, infer("nothing", TEXT)),
    "no such version beside an answer": lambda s: beside_answers(s, versioned("7")),
    "no version beside an answer": lambda s: beside_answers(s, versioned("x")),
    "100 MB of text": lambda s: over_grpc(s, infer("speech", ("text", "BYTES", [1], bytes(10**8)))),
}


def processes_of(server: Server) -> set[int]:
    return {server.pid} | {process.pid for process in descendants(server.pid) if process.is_worker}


def with_parameters(**parameters: str) -> Any:
    request = infer("speech", TEXT)
    for name, text in parameters.items():
        request.parameters[name].string_param = text
    return request


def test_ambiguous_requests_are_refused_by_the_proxy(server: Server) -> None:
    answer = over_grpc(server, with_parameters(**{"stretto_host\0": "203.0.113.9"}))
    assert "invalid request: parameters: expected text without NUL" in answer


# By day one of each place that an attack meets: the check of tensors, the HTTP port, headers, and answers.
BY_DAY = (
    "a dimension below zero",
    "nested JSON over HTTP",
    "an error and the header for its status",
    "no such model beside an answer",
)


@pytest.mark.parametrize("name", [*BY_DAY, *by_night(*sorted(ATTACKS.keys() - {*BY_DAY}))])
def test_attacks_do_not_end_any_process(server: Server, name: str) -> None:
    before = processes_of(server)
    answer = ATTACKS[name](server)
    assert answer, "answered"
    assert "unavailable: the server is starting" not in answer
    spoken = server.ask({"seed": 1, "max_audio_s": 0.5}, text="hello")
    assert spoken.error is None
    assert processes_of(server) == before


def test_flow_table_cannot_be_registered_as_shared_memory(server: Server) -> None:
    table = server.table()
    request = service_pb2.SystemSharedMemoryRegisterRequest(name="mine", key=f"/{table.path.name}", byte_size=4096)
    (key,) = Path("/dev/shm").glob(f"stretto_launch_*.run/key-{server.grpc}")
    assert key.stat().st_mode & 0o777 == 0o600
    for metadata in ([], [("triton-grpc-protocol-stretto-key", key.read_text())]):
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel:
            register = service_pb2_grpc.GRPCInferenceServiceStub(channel).SystemSharedMemoryRegister
            with pytest.raises(grpc.RpcError) as refused:
                register(request, timeout=WAIT_S, metadata=metadata)
        assert (
            "API is closed" in refused.value.details() or "without the server's own prefix" in refused.value.details()
        )
    table.close()


def test_ports_listen_on_loopback_and_no_command_line_has_the_key(server: Server) -> None:
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()]
    listening = dict(reversed(words[1].split(":")) for words in lines if words[3] == "0A")
    for port in (server.http, server.grpc, server.metrics):
        assert listening[f"{port:04X}"].endswith("0100007F"), "127.0.0.1, of IPv4 or mapped to IPv6"
    (key,) = Path("/dev/shm").glob(f"stretto_launch_*.run/key-{server.grpc}")
    assert not [process for process in all_processes() if key.read_text() in process.command]


def test_no_file_of_the_current_folder_is_executed(server: Server) -> None:
    """After each module's tests the folder is looked at again, so restarts are covered, too."""
    assert server.ask(text="Hello.").error is None
    assert (server.hostile / "random.py").exists()
    assert executed(server.hostile) == ""
