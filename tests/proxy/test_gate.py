"""Calls while a model restarts."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from stretto.proxy.__main__ import LauncherConnection
from stretto.proxy.triton_stream import CallGate
from stretto_client import ServerUnavailable, SpeechClient
from stretto_client.errors import ClientError
from tests.client.fake_server import Chunk, FakeServer, Pause, Until
from tests.patience import PATIENCE_S, until_async
from tests.proxy.conftest import grpc_server, proxy_config
from tests.proxy.test_grpc_proxy import request

AGAIN = "a process of the server has ended and is being restarted; try again"


class Gated:
    """A proxy with a gate, and a fake Triton that answers immediately, partly or never."""

    def __init__(self, triton: FakeServer, address: str, gate: CallGate) -> None:
        self.triton, self.address, self.gate = triton, address, gate
        self.heard: dict[str, int] = {}
        self.released = asyncio.Event()  # for what begins to answer, to go on

    async def speak(self, text: str) -> ClientError | None:
        """Return the error that ended a stream early."""
        self.heard[text] = 0
        try:
            async with SpeechClient(self.address) as client, asyncio.timeout(PATIENCE_S):
                async for _ in client.speak(text):
                    self.heard[text] += 1
        except ClientError as error:
            return error
        return None

    async def until(self, num_requests: int, **heard: int) -> None:
        await until_async(lambda: len(self.triton.requests) >= num_requests and not heard.items() - self.heard.items())


@pytest.fixture
async def gated() -> AsyncIterator[Gated]:
    triton = FakeServer(lambda asked: scripts.get(asked["text"], [Chunk(0, is_final=True, is_last=True)]))
    config, gate = proxy_config("models"), CallGate()
    async with grpc.aio.insecure_channel(await triton.start()) as channel:
        server = grpc_server(config, channel, gate=gate)
        await server.start()
        made = Gated(triton, f"127.0.0.1:{config.grpc_port}", gate)
        begun = [Chunk(0), Until(made.released), Chunk(1, is_final=True, is_last=True)]
        scripts = {b"silent": [Pause(600)], b"begun": begun}
        yield made
        await server.stop(0)
    await triton.stop()


async def test_closed_gate_ends_streams_with_a_retryable_error(gated: Gated) -> None:
    streams = [asyncio.create_task(gated.speak(text)) for text in ("silent", "begun")]
    await gated.until(2, begun=1)
    gated.gate.close(spares_answered=False)
    for error in await asyncio.gather(*streams):
        assert isinstance(error, ServerUnavailable)
        assert AGAIN in str(error)


async def test_answered_streams_continue_if_spared_by_the_gate(gated: Gated) -> None:
    silent, begun = [asyncio.create_task(gated.speak(text)) for text in ("silent", "begun")]
    await gated.until(2, begun=1)
    gated.gate.close(spares_answered=True)
    assert isinstance(await silent, ServerUnavailable)
    gated.released.set()
    assert await begun is None
    assert gated.heard["begun"] == 2


@pytest.mark.parametrize("is_closed_first", [False, True])
async def test_gate_cancels_abandoned_calls_that_never_end(gated: Gated, is_closed_first: bool) -> None:
    async with SpeechClient(gated.address) as client, asyncio.timeout(PATIENCE_S):
        stream = client.speak("begun")
        await anext(stream)
        if is_closed_first:
            gated.gate.close(spares_answered=True)
        await stream.aclose()
        assert not gated.triton.num_cancelled
        gated.gate.close(spares_answered=False)
        await gated.triton.cancelled.wait()


async def test_disconnect_from_a_spared_stream_cancels_nothing(gated: Gated) -> None:
    async with SpeechClient(gated.address) as client, asyncio.timeout(PATIENCE_S):
        stream = client.speak("begun")
        await anext(stream)
        gated.gate.close(spares_answered=True)
        await stream.aclose()
    gated.released.set()
    await until_async(lambda: gated.triton.num_ended)
    assert not gated.triton.num_cancelled


async def test_closing_the_gate_cancels_abandoned_unary_calls(gated: Gated) -> None:
    gated.triton.may_infer = asyncio.Event()
    async with grpc.aio.insecure_channel(gated.address) as channel, asyncio.timeout(PATIENCE_S):
        asking = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request("preprocessor"))
        while not gated.triton.parameters:
            await asyncio.sleep(0.01)
        asking.cancel()
        await asyncio.sleep(0.1)
        assert not gated.triton.num_cancelled
        gated.gate.close(spares_answered=True)
        while not gated.triton.num_cancelled:
            await asyncio.sleep(0.01)


async def test_gate_ends_a_stream_with_several_requests(gated: Gated) -> None:
    async with grpc.aio.insecure_channel(gated.address) as channel, asyncio.timeout(PATIENCE_S):
        stream = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer()
        for text in ("\5\0\0\0hello", "\5\0\0\0begun"):
            await stream.write(request(raw=text.encode()))
            await stream.read()
        await gated.until(2)
        gated.gate.close(spares_answered=True)
        with pytest.raises(grpc.aio.AioRpcError, match=AGAIN):
            await stream.read()


async def test_closed_gate_refuses_requests_until_reopened(gated: Gated) -> None:
    gated.gate.close(spares_answered=True)
    assert isinstance(await gated.speak("hello"), ServerUnavailable)
    async with grpc.aio.insecure_channel(gated.address) as channel, asyncio.timeout(PATIENCE_S):
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError, match=AGAIN) as refused:
            await stub.ModelInfer(request("preprocessor"))
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert (await stub.ServerReady(service_pb2.ServerReadyRequest())).ready, "no inference: it passes"
    assert gated.triton.requests == []
    gated.gate.open()
    assert await gated.speak("hello") is None


def test_launcher_closes_and_opens_the_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    said = [b"ready\n", b"ending all\n", b"unready\n", b"ending unanswered\nready\n"]
    monkeypatch.setattr("os.read", lambda descriptor, size: said.pop(0))
    launcher, found, spared = LauncherConnection(), [], []
    monkeypatch.setattr(launcher.gate, "close", lambda spares_answered: spared.append(spares_answered))
    while said:
        launcher.read_commands()
        found.append(launcher.is_ready())
    assert found == [True, False, False, True]
    assert spared == [False, True]


def test_dead_stub_is_reported_once_per_launcher_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = [b"ready\n", b"ending all\n", b"ready\n"]
    monkeypatch.setattr("os.read", lambda descriptor, size: commands.pop(0))
    launcher, reported = LauncherConnection(), []
    while commands:
        launcher.read_commands()
        for _ in range(2):
            launcher.gate.report_dead_stub("acoustic_decoder")
        reported.append(capsys.readouterr().out)
    assert reported == ["acoustic_decoder\n", "", "acoustic_decoder\n"], "none while the gate is closed"
