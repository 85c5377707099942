"""Calls that the proxy forwards to Triton, and calls that it refuses."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from typing import Any
from unittest.mock import AsyncMock

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from stretto.disconnects import HOST, STREAM
from stretto.proxy import grpc_proxy
from stretto.proxy.__main__ import LauncherConnection, grpc_listener
from stretto.proxy.access import Access, OurModels, ServedModels
from stretto.proxy.apis import CALLER_HEADER, KEY_HEADER, MODELS
from stretto.proxy.grpc_proxy import CROWDED
from stretto.proxy.infer_request import BadRequest
from stretto_client import RequestRefused, ServerUnavailable, SpeechClient
from tests.client.fake_server import Abort, Chunk, ErrorText, FakeServer, Until
from tests.patience import PATIENCE_S, until_async
from tests.proxy.conftest import KEY, Proxied, grpc_server, proxied, proxy_config
from tests.tiers import by_night

TEXT = b"\x02\0\0\0hi"


def request(model: str = "speech", shape: Iterable[int] = (1,), raw: bytes = TEXT) -> service_pb2.ModelInferRequest:
    made = service_pb2.ModelInferRequest(model_name=model, id=f"{list(shape)}")
    made.inputs.add(name="text", datatype="BYTES", shape=shape)
    made.raw_input_contents.append(raw)
    return made


async def answers(address: str, *requests: Any, metadata: Any = None) -> list[service_pb2.ModelStreamInferResponse]:
    async with grpc.aio.insecure_channel(address) as channel, asyncio.timeout(PATIENCE_S):
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        return [answer async for answer in stub.ModelStreamInfer(iter(requests), metadata=metadata)]


async def call(address: str, method: str, message: Any, metadata: Any = None) -> Any:
    async with grpc.aio.insecure_channel(address) as channel, asyncio.timeout(PATIENCE_S):
        return await getattr(service_pb2_grpc.GRPCInferenceServiceStub(channel), method)(message, metadata=metadata)


async def test_proxy_forwards_streams_both_ways(proxy: Proxied) -> None:
    async with SpeechClient(proxy.address) as client:
        assert await client.ready()
        events = [event async for event in client.speak("hello")]
    assert [event.text for event in events] == ["a cat", ""]
    assert events[-1].is_final
    assert proxy.triton.requests[0]["text"] == b"hello"


async def test_unknown_grpc_methods_and_empty_calls_are_refused(proxy: Proxied) -> None:
    async def send(method: str, *requests: bytes) -> tuple[grpc.StatusCode, str]:
        calling = channel.stream_stream(f"/inference.GRPCInferenceService/{method}")(iter(requests))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await calling.read()
        return refused.value.code(), refused.value.details() or ""

    async with grpc.aio.insecure_channel(proxy.address) as channel, asyncio.timeout(PATIENCE_S):
        # Without a message, because gRPC's client may report INTERNAL if a message meets a call that has ended.
        assert (await send("Nothing"))[0] is grpc.StatusCode.UNIMPLEMENTED
        expected = grpc.StatusCode.INVALID_ARGUMENT, "expected a message, got none"
        assert await send("ServerReady") == expected
    assert proxy.triton.requests == []


async def test_unknown_models_are_unavailable_without_triton(proxy: Proxied) -> None:
    await proxy.triton.stop()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call(proxy.address, "ModelInfer", request("other"))
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "the server did not report whether it has this model; try again" in str(refused.value.details())


async def test_header_that_crashes_triton_is_dropped(proxy: Proxied) -> None:
    await answers(proxy.address, request(), metadata=[("triton_grpc_error", "true"), ("traceparent", "00-1")])
    (metadata,) = proxy.triton.metadata
    assert "triton_grpc_error" not in metadata
    assert metadata["traceparent"] == "00-1"


async def test_proxy_overwrites_client_host_and_stream_parameters(proxy: Proxied) -> None:
    forged = request()
    forged.parameters[HOST].string_param = "203.0.113.9"
    forged.parameters["mine"].string_param = "as it was"
    forged.parameters[STREAM].string_param = "7"
    await answers(proxy.address, request(), forged)
    number = proxy.triton.parameters[0][STREAM]
    assert int(number) > 7
    whose = {HOST: "127.0.0.1", STREAM: number}
    assert proxy.triton.parameters == [whose, whose | {"mine": "as it was"}]
    assert proxy.triton.requests[1]["text"] == b"hi"
    proxy.triton.parameters.clear()
    await call(proxy.address, "ModelInfer", forged, None)
    assert proxy.triton.parameters == [{HOST: "127.0.0.1", STREAM: "0", "mine": "as it was"}]


async def test_caller_header_is_honoured_only_with_the_key(proxy: Proxied) -> None:
    """Limits of the models are then shared among them; names without the key have no effect."""
    named = (CALLER_HEADER, "5f3a")
    for metadata, host in (
        ([named, (KEY_HEADER, KEY)], "127.0.0.1/5f3a"),
        ([named, (KEY_HEADER, KEY[:-1])], "127.0.0.1"),
        ([named], "127.0.0.1"),
        ([(KEY_HEADER, KEY)], "127.0.0.1"),
        ([(CALLER_HEADER, 'a"'), (KEY_HEADER, KEY)], "127.0.0.1"),
        ([(CALLER_HEADER, "a" * 65), (KEY_HEADER, KEY)], "127.0.0.1"),
    ):
        proxy.triton.parameters.clear()
        await answers(proxy.address, request(), metadata=metadata)
        await call(proxy.address, "ModelInfer", request(), metadata)
        assert [each[HOST] for each in proxy.triton.parameters] == [host, host]


async def test_malformed_request_is_answered_and_its_stream_continues(proxy: Proxied) -> None:
    came = await answers(proxy.address, request(shape=[-1]), request(shape=[2**62, 4]), request())
    refused = [answer for answer in came if answer.error_message]
    assert [answer.infer_response.id for answer in refused] == ["[-1]", "[4611686018427387904, 4]"]
    wanted = "invalid request: inputs.text: expected a shape of fewer than 2^31 elements, got [-1]"
    assert refused[0].error_message == wanted
    assert len(came) - len(refused) == 2
    assert len(proxy.triton.requests) == 1


async def test_stub_exit_messages_match_the_launchers(proxy: Proxied) -> None:
    ended = "in ensemble 'speech', Stub process 'acoustic_decoder_0_0' is not healthy."
    proxy.triton.script = lambda _: [Chunk(0, text=ended), ErrorText(ended)]
    async with SpeechClient(proxy.address) as client:
        stream = client.speak("hello")
        assert (await anext(stream)).text == ended
        with pytest.raises(ServerUnavailable, match=r"^a process of the server has ended .*; try again$"):
            await anext(stream)
    assert proxy.given_up == ["acoustic_decoder"]


@pytest.mark.parametrize("said", ["{}", "[request id: 7] {}", "in ensemble 'speech', {}"])
@pytest.mark.parametrize("stub", ["Stub process 'preprocessor_0_0' is not healthy.", "' is not healthy."])
async def test_only_triton_error_messages_mark_a_model_unhealthy(proxy: Proxied, stub: str, said: str) -> None:
    proxy.triton.script = lambda _: [ErrorText(said.format(stub))]
    await answers(proxy.address, request())
    assert proxy.given_up == (["preprocessor"] if stub.startswith("Stub") else [])
    theirs = f"invalid request: task: expected tts, got {said.format(stub)}"
    proxy.triton.script = lambda _: [ErrorText(theirs)]
    await answers(proxy.address, request())
    assert len(proxy.given_up) == stub.startswith("Stub")


@pytest.mark.parametrize(
    ("code", "said", "told"),
    [
        (grpc.StatusCode.INTERNAL, "Internal error from Core", grpc.StatusCode.UNAVAILABLE),
        (grpc.StatusCode.UNAVAILABLE, "Socket closed", grpc.StatusCode.UNAVAILABLE),
        (grpc.StatusCode.INTERNAL, "any other", grpc.StatusCode.INTERNAL),
    ],
)
async def test_call_ended_by_triton_restart_is_unavailable(
    proxy: Proxied, code: grpc.StatusCode, said: str, told: grpc.StatusCode
) -> None:
    proxy.triton.script = lambda _: [Abort(code, said)]
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await answers(proxy.address, request())
    assert ended.value.code() is told
    assert ended.value.details() == (
        said if told is not grpc.StatusCode.UNAVAILABLE else "unavailable: the server is starting"
    )


@pytest.mark.parametrize("is_silent", [False, True], ids=["amid an answer", "before it goes on"])
async def test_disconnect_is_reported_to_the_models_without_cancelling(proxy: Proxied, is_silent: bool) -> None:
    goes_on, large = asyncio.Event(), [Chunk(index, num_samples=100_000) for index in range(30)]
    proxy.triton.script = lambda _: [Chunk(0), *[Until(goes_on)][: int(is_silent)], *large, Chunk(31, is_last=True)]
    async with grpc.aio.insecure_channel(proxy.address) as channel, asyncio.timeout(PATIENCE_S):
        stream = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer()
        await stream.write(request())
        await stream.read()
        number = int(proxy.triton.parameters[0][STREAM])
        assert not proxy.disconnects.has(number)
        stream.cancel()
    await until_async(lambda: proxy.disconnects.has(number))
    goes_on.set()
    await until_async(lambda: proxy.triton.num_ended == 1)
    assert proxy.triton.num_cancelled == 0
    assert await answers(proxy.address, request())
    assert not proxy.disconnects.has(int(proxy.triton.parameters[-1][STREAM]))


async def test_disconnects_are_forwarded_to_triton_for_other_models(proxy: Proxied) -> None:
    proxy.triton.script = lambda _: [Chunk(0), Until(asyncio.Event())]
    async with grpc.aio.insecure_channel(proxy.address) as channel, asyncio.timeout(PATIENCE_S):
        stream = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer()
        await stream.write(request("somebody_elses"))
        await stream.read()
        stream.cancel()
        await proxy.triton.cancelled.wait()


@pytest.mark.parametrize(("first", "second"), [("speech", "somebody_elses"), ("somebody_elses", "speech")])
async def test_grpc_stream_is_bound_to_one_model(proxy: Proxied, first: str, second: str) -> None:
    came = await answers(proxy.address, request(first), request(second), request(first))
    assert [each["model"] for each in proxy.triton.requests] == [first, first]
    (refused,) = [answer.error_message for answer in came if answer.error_message]
    expected, got = f"'{first}', version 1", f"'{second}', version 1"
    assert refused == f"invalid request: model_name: expected {expected}, as before on this stream, got {got}"


@pytest.mark.parametrize(
    ("model", "version", "told"),
    [
        ("none", "", "model_name: expected a model that the server has, got 'none', version ''"),
        ("somebody_elses", "7", "model_name: expected a model that the server has, got 'somebody_elses', version '7'"),
        ("speech", "2", "model_version: expected '1' or none, got '2'"),
        ("speech\0", "", "model_name: expected text without NUL, got 'speech\\x00'"),
    ],
)
async def test_missing_models_are_never_requested(proxy: Proxied, model: str, version: str, told: str) -> None:
    asked = request(model)
    asked.model_version = version
    came = await answers(proxy.address, request(), asked, request())
    assert [answer.error_message for answer in came if answer.error_message] == [f"invalid request: {told}"]
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call(proxy.address, "ModelInfer", asked)
    assert refused.value.details() == f"invalid request: {told}"
    assert [each["model"] for each in proxy.triton.requests] == ["speech", "speech"]


@pytest.fixture
async def narrow_proxy(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Proxied]:
    """A proxy with capacity for two calls, of which one host may use one."""
    monkeypatch.setattr(grpc_proxy, "MAX_CALLS", 2)
    async for each in proxied():
        yield each


async def test_slot_of_an_abandoned_call_is_kept_until_it_drains(narrow_proxy: Proxied) -> None:
    triton, goes_on = narrow_proxy.triton, asyncio.Event()
    triton.script = lambda _: [Chunk(0), Until(goes_on), Chunk(1, is_last=True)]
    async with grpc.aio.insecure_channel(narrow_proxy.address) as channel, asyncio.timeout(PATIENCE_S):
        stream = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer()
        await stream.write(request())
        await stream.read()
        stream.cancel()
    await until_async(lambda: narrow_proxy.disconnects.has(int(triton.parameters[0][STREAM])))
    assert not await has_place(narrow_proxy)
    goes_on.set()
    await until_placed(narrow_proxy)
    triton.parameters.clear()
    await leave_after_a_sole_request(narrow_proxy, "speech")
    assert not await has_place(narrow_proxy)
    assert triton.may_infer is not None
    triton.may_infer.set()
    await until_placed(narrow_proxy)


async def has_place(proxy: Proxied) -> bool:
    try:
        await call(proxy.address, "ServerLive", service_pb2.ServerLiveRequest())
    except grpc.aio.AioRpcError as error:
        return error.details() != CROWDED  # the fake Triton has no such call
    return True


async def until_placed(proxy: Proxied) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not await has_place(proxy):
            await asyncio.sleep(0.01)


async def test_disconnect_after_a_unary_request_cancels_nothing(proxy: Proxied) -> None:
    await leave_after_a_sole_request(proxy, "speech")
    assert proxy.triton.may_infer is not None
    proxy.triton.may_infer.set()
    await until_async(lambda: proxy.triton.num_ended == 1)
    assert proxy.triton.num_cancelled == 0


async def test_unary_request_for_another_model_is_cancelled_on_disconnect(proxy: Proxied) -> None:
    await leave_after_a_sole_request(proxy, "somebody_elses")
    await until_async(lambda: proxy.triton.num_cancelled == 1)


async def leave_after_a_sole_request(proxy: Proxied, model: str) -> None:
    proxy.triton.may_infer = asyncio.Event()
    async with grpc.aio.insecure_channel(proxy.address) as channel:
        asking = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request(model))
        await until_async(lambda: bool(proxy.triton.parameters))
        asking.cancel()


@pytest.mark.parametrize("model", ["preprocessor", "language_model", "acoustic_decoder"])
async def test_ensemble_step_models_require_the_key(proxy: Proxied, model: str) -> None:
    (refused,) = await answers(proxy.address, request(model))
    closed = "invalid request: model_name: the models API is closed: start the server with --allow models"
    assert refused.error_message.startswith(closed)
    assert len(await answers(proxy.address, request(model), metadata=[(KEY_HEADER, KEY)])) == 2
    assert [each["model"] for each in proxy.triton.requests] == [model]


async def test_commands_for_adapters_require_the_key_whatever_is_allowed(proxy: Proxied) -> None:
    command = request("language_model")
    command.inputs.add(name="adapters", datatype="BYTES", shape=[1])
    command.raw_input_contents.append(b"\2\0\0\0{}")
    access = Access(KEY, frozenset({MODELS}))
    served = ServedModels(access, OurModels().names, AsyncMock())
    with pytest.raises(BadRequest, match=r"inputs\.adapters: expected the server's key in the header"):
        await served.check(command, ())
    await served.check(command, [(KEY_HEADER, KEY)])
    await served.check(request("language_model"), ())


@pytest.mark.parametrize(
    "method", ["RepositoryModelLoad", *by_night("SystemSharedMemoryRegister", "TraceSetting", "LogSettings")]
)
async def test_restricted_grpc_method_requires_the_key(proxy: Proxied, method: str) -> None:
    kind = "TraceSettingRequest" if method == "TraceSetting" else f"{method}Request"
    message = getattr(service_pb2, kind)()
    for metadata in (None, [(KEY_HEADER, KEY[:-1])], [(KEY_HEADER, "")], [("authorization", KEY)]):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(proxy.address, method, message, metadata)
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert "API is closed: start the server with --allow " in refused.value.details()
    with pytest.raises(grpc.aio.AioRpcError) as passed:  # the fake Triton has no such call, or no such memory
        await call(proxy.address, method, message, [(KEY_HEADER, KEY)])
    assert passed.value.code() in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNKNOWN)


async def test_allowed_api_needs_no_key(open_proxy: Proxied) -> None:
    assert len(await answers(open_proxy.address, request("preprocessor"))) == 2


async def test_server_memory_cannot_be_registered(open_proxy: Proxied) -> None:
    message = service_pb2.SystemSharedMemoryRegisterRequest(name="a", key="/stretto_flow_7_x", byte_size=8)
    for metadata in (None, [(KEY_HEADER, KEY)]):
        with pytest.raises(grpc.aio.AioRpcError, match="key: expected a name without the server's own prefix"):
            await call(open_proxy.address, "SystemSharedMemoryRegister", message, metadata)
    assert not open_proxy.triton.regions


async def test_oversized_grpc_message_is_refused_and_others_are_served(proxy: Proxied) -> None:
    async with SpeechClient(proxy.address) as client:
        with pytest.raises(RequestRefused, match=r"larger than max \(\d+ vs\. 1000000\)"):
            [event async for event in client.transcribe(b"x" * 2_000_000)]
        assert [event async for event in client.speak("hello")][-1].is_final


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, *by_night(grpc.Compression.Deflate)])
async def test_compressed_messages_are_refused_without_decompression(
    proxy: Proxied, compression: grpc.Compression
) -> None:
    async def never() -> AsyncIterator[service_pb2.ModelInferRequest]:  # the headers are enough to be refused
        await asyncio.Event().wait()
        yield zeros

    zeros = request(shape=(1,), raw=b"\0\xe8\x03\0" + bytes(256_000))
    async with (
        grpc.aio.insecure_channel(proxy.address, compression=compression) as channel,
        asyncio.timeout(PATIENCE_S),
    ):
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.ModelInfer(zeros)
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            [answer async for answer in stub.ModelStreamInfer(never())]
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert proxy.triton.requests == []
    assert len(await answers(proxy.address, request())) == 2


async def test_oversized_metadata_fails_only_its_own_call(proxy: Proxied) -> None:
    name = service_pb2.ModelReadyRequest(name="speech")
    for metadata in ([("a", "x" * 100_000)], [(f"a{number}", "x" * 100) for number in range(1000)]):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(proxy.address, "ModelReady", name, metadata)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert len(await answers(proxy.address, request())) == 2


async def test_proxy_reports_starting_without_triton() -> None:
    config = proxy_config()
    async with grpc.aio.insecure_channel("unix:/no/such/socket") as nobody:
        server = grpc_server(config, nobody)
        await server.start()
        async with SpeechClient(f"127.0.0.1:{config.grpc_port}") as client, asyncio.timeout(PATIENCE_S):
            assert not await client.ready()
            with pytest.raises(ServerUnavailable, match=r"^unavailable: the server is starting$"):
                [event async for event in client.speak("hello")]
        await server.stop(0)


async def test_known_faults_make_the_proxy_unready_but_it_still_answers() -> None:
    triton = FakeServer(lambda _: [Chunk(0, is_final=True, is_last=True)])
    config, is_ready = proxy_config(), False
    async with grpc.aio.insecure_channel(await triton.start()) as channel:
        server = grpc_server(config, channel, lambda: is_ready)
        await server.start()
        async with SpeechClient(f"127.0.0.1:{config.grpc_port}") as client, asyncio.timeout(PATIENCE_S):
            assert not await client.ready()
            assert [event async for event in client.speak("hello")][-1].is_final
            is_ready = True
            assert await client.ready()
        await server.stop(0)
    await triton.stop()


def test_fragmented_launcher_commands_are_reassembled(monkeypatch: pytest.MonkeyPatch) -> None:
    said = [b"unready\nrea", b"dy", b"\n", b"unready\n", b""]
    monkeypatch.setattr("os.read", lambda descriptor, size: said.pop(0))
    launcher, heard = LauncherConnection(), []
    while said:
        launcher.read_commands()
        heard.append(launcher.is_ready())
    assert heard == [False, False, True, False, False]
    assert launcher.stopped.is_set()


@pytest.mark.nightly  # gRPC takes three pings, which must be at least 10 s apart, before it refuses a fourth one
async def test_pings_of_a_client_during_a_silent_call_are_accepted(proxy: Proxied) -> None:
    goes_on = asyncio.Event()
    proxy.triton.script = lambda _: [Until(goes_on), Chunk(0, is_final=True, is_last=True)]
    pings = [("grpc.keepalive_time_ms", 11_000), ("grpc.http2.max_pings_without_data", 0)]
    async with grpc.aio.insecure_channel(proxy.address, pings) as channel:
        calling = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer(iter([request()]))
        asyncio.get_running_loop().call_later(60, goes_on.set)
        async with asyncio.timeout(60 + PATIENCE_S):
            assert [answer.error_message async for answer in calling] == [""]


async def test_grpc_port_in_use_is_not_shared(proxy: Proxied) -> None:
    taken = int(proxy.address.rpartition(":")[2])
    with pytest.raises(OSError, match=f"cannot listen at 127.0.0.1:{taken}"):
        grpc_listener(replace(proxy_config(), grpc_port=taken))
