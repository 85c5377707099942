"""The engine client uses vLLM's protocol, aborts abandoned requests, and fails requests of an ended engine."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from multiprocessing.connection import Pipe
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import pytest_asyncio
import torch
import zmq
from vllm import SamplingParams
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine import (
    FINISH_REASON_STRINGS,
    EngineCoreOutput,
    EngineCoreOutputs,
    EngineCoreReadyResponse,
    EngineCoreRequest,
    EngineCoreRequestType,
    FinishReason,
    UtilityOutput,
)
from vllm.v1.engine.core import EngineCore, EngineCoreProc
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder, UtilityResult

from stretto.config import EngineConfig
from stretto.engine import client as module
from stretto.engine.client import EngineClient, EngineConnection, Output
from stretto.engine.host import StartedEngines
from stretto.engine.protocol import DELTA, Adapter
from stretto.engine.reply_rules import updates_in
from stretto.errors import CheckpointError, StrettoError

pytestmark = pytest.mark.asyncio
READY = dict.fromkeys(("max_model_len", "num_gpu_blocks", "block_size", "max_num_seqs"), 7)
FIELDS = {"max_tokens": 5, "stop_token_ids": [3], "output_kind": DELTA, "extra_args": {"codes": b"1234"}}


class Engines:
    """Fake engines: their ends of the sockets, and their host's end of the connection."""

    def __init__(self, connection: Any, number: int) -> None:
        self.connection, self.number = connection, number
        self.answer: object = StartedEngines([1] * number)
        self.sockets: list[zmq.Socket] = []
        self.context = zmq.Context()

    def start(self) -> None:
        """Start a fake host and engines that answer a client, the last one first."""
        request = self.connection.recv()
        if isinstance(self.answer, StartedEngines):
            for index in reversed(range(self.number)):
                socket = self.context.socket(zmq.DEALER)
                socket.setsockopt(zmq.IDENTITY, index.to_bytes(2, "little"))
                socket.connect(request.inputs)
                socket.send(msgspec.msgpack.encode(READY))
                self.sockets.insert(0, socket)
            self.output = self.context.socket(zmq.PUSH)
            self.output.connect(request.outputs)
        self.connection.send(self.answer)

    def read(self, index: int = 0) -> tuple[EngineCoreRequestType, Any]:
        """Return the next message to an engine as vLLM reads it."""
        assert self.sockets[index].poll(10_000)
        kind, record = self.sockets[index].recv_multipart()
        kind = EngineCoreRequestType(kind)
        return kind, MsgpackDecoder(*([EngineCoreRequest] if kind is EngineCoreRequestType.ADD else [])).decode(record)

    def has_message(self, index: int = 0) -> bool:
        """Return True if a message to an engine is unread."""
        return bool(self.sockets[index].poll(0))

    def write(self, *outputs: EngineCoreOutput) -> None:
        """Send outputs as vLLM sends them."""
        self.output.send_multipart(MsgpackEncoder().encode(EngineCoreOutputs(outputs=list(outputs))))


class Started:
    """Connection to a host that starts on request."""

    def __init__(self, connection: Any, engines: Engines) -> None:
        self._connection, self._engines = connection, engines

    def send(self, message: object) -> None:
        self._connection.send(message)
        if message is None:
            self._engines.connection.close()
        else:
            self._engines.start()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


def sent_ids(request: EngineCoreRequest) -> list[tuple[str, list[int], bool]]:
    """Return the ids that a message carries for requests in progress."""
    updates = updates_in(request.sampling_params.extra_args)
    assert updates is not None
    return [(each.request_id, each.ids.tolist(), each.is_last) for each in updates]


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Engines]:
    ours, theirs = Pipe()
    found = Engines(theirs, 2)
    monkeypatch.setattr(module, "connect_host", lambda _: (Started(ours, found), None))
    yield found
    found.context.destroy(linger=0)


@pytest_asyncio.fixture
async def client(engines: Engines) -> AsyncIterator[EngineClient]:
    made = EngineClient(EngineConnection(EngineConfig(Path(), {"data_parallel_size": 2}), Path("stats")).wait())
    yield made
    made.shutdown()


async def test_client_implements_the_vllm_engine_protocol(client: EngineClient, engines: Engines) -> None:
    assert (client.num_engines, msgspec.to_builtins(client.ready)) == (2, READY)
    reply = client.generate([1, 2], FIELDS, "r", Adapter("narrator", 1, "folder"))
    first = asyncio.create_task(anext(reply))
    await asyncio.sleep(0)
    kind, request = engines.read()
    kinds = {**FIELDS, "output_kind": RequestOutputKind.DELTA}
    assert kind is EngineCoreRequestType.ADD
    assert (request.prompt_token_ids, request.sampling_params) == ([1, 2], SamplingParams(**kinds))
    assert request.lora_request == LoRARequest("narrator", 1, "folder")
    assert client.has("r")
    engines.write(EngineCoreOutput(request.request_id, [5, 6]))
    assert await first == Output([5, 6], None)
    client.append("r", np.array([4], np.int32), True)
    await asyncio.sleep(0)
    assert sent_ids(engines.read()[1]) == [(request.request_id, [4], True)]
    engines.write(EngineCoreOutput(request.request_id, [7]))
    engines.write(EngineCoreOutput(request.request_id, [8], finish_reason=FinishReason.STOP))
    while client.has("r"):
        await asyncio.sleep(0.01)
    assert [output async for output in reply] == [Output([7, 8], "stop")], "unread outputs are merged"
    assert client.num_requests == 0


@pytest.mark.parametrize("num_rows", [1, 300])
async def test_hidden_states_arrive_before_the_rows(client: EngineClient, engines: Engines, num_rows: int) -> None:
    """A small tensor is part of vLLM's message, and a large one is a frame of its own."""
    reply = client.generate([1], FIELDS, "r")
    first = asyncio.create_task(anext(reply))
    await asyncio.sleep(0)
    name = engines.read()[1].request_id
    states = torch.randn(num_rows, 3)
    engines.write(EngineCoreOutput(name, [], pooling_output=states), EngineCoreOutput(name, [4]))
    found = await first
    assert (found.ids, found.finish_reason) == ([4], None)
    assert found.states is not None
    np.testing.assert_array_equal(found.states, states.numpy())
    engines.write(EngineCoreOutput(name, [5], finish_reason=FinishReason.STOP))
    assert await anext(reply) == Output([5], "stop")


async def test_requests_are_routed_to_the_least_loaded_engine(client: EngineClient, engines: Engines) -> None:
    replies = [asyncio.create_task(anext(client.generate([1], FIELDS, name))) for name in "abc"]
    await asyncio.sleep(0)
    ids = [engines.read(index)[1].request_id for index in (0, 1, 0)]
    assert [each[0] for each in ids] == ["a", "b", "c"]
    replies[1].cancel()
    await asyncio.wait(replies[1:2])
    assert engines.read(1) == (EngineCoreRequestType.ABORT, [ids[1]])
    again = asyncio.create_task(anext(client.generate([1], FIELDS, "b")))
    await asyncio.sleep(0)
    engines.write(EngineCoreOutput(ids[1], [1]))  # of the aborted request, late
    engines.write(EngineCoreOutput(engines.read(1)[1].request_id, [2]))
    assert (await again).ids == [2]


async def test_aborted_request_ends_with_reason_abort(client: EngineClient, engines: Engines) -> None:
    reply = client.generate([1], FIELDS, "r")
    first = asyncio.create_task(anext(reply))
    await asyncio.sleep(0)
    client.abort("r")
    assert await first == Output([], "abort")
    assert [engines.read()[0] for _ in range(2)] == [EngineCoreRequestType.ADD, EngineCoreRequestType.ABORT]
    client.abort("r")
    client.append("r", np.array([1], np.int32), False)  # no effect
    await asyncio.sleep(0)
    assert not engines.has_message()


async def test_text_ids_are_batched_into_one_message_per_engine(client: EngineClient, engines: Engines) -> None:
    """Requests that have ended are left out; ids of one request are joined in order."""
    replies = {name: client.generate([1], FIELDS, name) for name in ("a", "b", "c", "d")}
    waiting = [asyncio.create_task(anext(reply)) for reply in replies.values()]
    await asyncio.sleep(0)
    own = [[engines.read(engine)[1].request_id for _ in range(2)] for engine in (0, 1)]
    assert [[name[0] for name in names] for names in own] == [["a", "c"], ["b", "d"]]
    for name, ids, is_last in (("a", [1, 2], False), ("b", [3], False), ("c", [4], True), ("a", [5], True)):
        client.append(name, np.array(ids, np.int32), is_last)
    client.append("d", np.array([6], np.int32), False)
    client.abort("d")
    await asyncio.sleep(0)
    assert sent_ids(engines.read(0)[1]) == [(own[0][0], [1, 2, 5], True), (own[0][1], [4], True)]
    assert engines.read(1)[0] is EngineCoreRequestType.ABORT
    assert sent_ids(engines.read(1)[1]) == [(own[1][0], [3], False)]
    client.append("b", np.array([7], np.int32), False)
    client.append("b", np.array([8], np.int32), False)
    while not engines.has_message(1):
        await asyncio.sleep(0.001)
    assert sent_ids(engines.read(1)[1]) == [(own[1][0], [7, 8], False)]
    for task in waiting:
        task.cancel()


@pytest.mark.parametrize("is_told", [True, False])
async def test_replies_fail_when_the_engine_has_ended(client: EngineClient, engines: Engines, is_told: bool) -> None:
    first = asyncio.create_task(anext(client.generate([1], FIELDS, "r")))
    await asyncio.sleep(0)
    if is_told:
        engines.output.send(b"ENGINE_CORE_DEAD")
    else:
        engines.connection.close()
    with pytest.raises(StrettoError, match="the engine has ended"):
        await first
    assert client.num_requests == 0


async def test_engine_host_exceptions_are_raised_in_the_client(engines: Engines) -> None:
    engines.answer = CheckpointError("config.json: broken")
    with pytest.raises(CheckpointError, match=r"config.json: broken"):
        EngineConnection(EngineConfig(Path()), Path("stats")).wait()


async def test_engine_protocol_matches_vllm() -> None:
    assert module.FINISH_REASONS == FINISH_REASON_STRINGS
    kinds = EngineCoreRequestType.ADD, EngineCoreRequestType.ABORT, EngineCoreRequestType.UTILITY
    assert tuple(kind.value for kind in kinds) == (module.ADD, module.ABORT, module.UTILITY)
    assert module.EngineOutput.__struct_fields__ == EngineCoreOutput.__struct_fields__[:6]
    assert module.EngineOutputs.__struct_fields__ == EngineCoreOutputs.__struct_fields__[:5]
    assert module.CallOutput.__struct_fields__ == UtilityOutput.__struct_fields__[:2]
    assert set(READY) <= set(EngineCoreReadyResponse.__dataclass_fields__)
    assert RequestOutputKind(DELTA) is RequestOutputKind.DELTA


@pytest.mark.parametrize("failure", [None, "Call to add_lora method failed: adapters.n: no"])
async def test_methods_are_called_in_all_engines(client: EngineClient, engines: Engines, failure: str | None) -> None:
    calling = asyncio.create_task(client.call("add_lora", Adapter("n", 3, "folder")))
    await asyncio.sleep(0)
    for index in (0, 1):
        kind, (client_index, call_id, method, arguments) = engines.read(index)
        assert (kind, client_index, method) == (EngineCoreRequestType.UTILITY, 0, "add_lora")
        (converted,) = EngineCoreProc._convert_msgspec_args(EngineCore.add_lora.__get__(client), arguments)
        assert converted == LoRARequest("n", 3, "folder")
        assert not calling.done()
        output = (
            UtilityOutput(call_id, failure) if index and failure else UtilityOutput(call_id, None, UtilityResult(True))
        )
        engines.output.send_multipart(MsgpackEncoder().encode(EngineCoreOutputs(utility_output=output)))
    if failure is None:
        await calling
    else:
        with pytest.raises(StrettoError, match=failure):
            await calling


async def test_calls_fail_when_the_engine_has_ended(client: EngineClient, engines: Engines) -> None:
    calling = asyncio.create_task(client.call("remove_lora", 3))
    await asyncio.sleep(0)
    engines.output.send(b"ENGINE_CORE_DEAD")
    with pytest.raises(StrettoError, match="the engine has ended"):
        await calling
