"""Sleep of an idle server: which requests keep it awake, and what becomes of those that arrive while it sleeps."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from stretto.proxy import sleep as sleeping
from stretto.proxy.__main__ import grpc_listener, grpc_proxy
from stretto.proxy.apis import MODEL_CONFIG, MODEL_READY
from stretto.proxy.connections import ConnectionLimits, Connections
from stretto.proxy.infer_request import BadRequest
from stretto.proxy.last_answers import LastAnswers
from stretto.proxy.messages import ASLEEP, IDLE, READY, STOPPING, UNREADY, WAKE, WAKE_FAILED
from stretto.proxy.pages import MetricsPage, Readiness
from stretto.proxy.sleep import LEAST_BYTES, Sleep
from stretto.proxy.triton_stream import CallGate, Uploads
from stretto_client import ServerUnavailable, SpeechClient
from tests.client.fake_server import Chunk, FakeServer, Until
from tests.patience import PATIENCE_S, until_async
from tests.proxy.conftest import KEY, Word, proxy_config
from tests.proxy.test_grpc_proxy import request

NO_ANSWERS = LastAnswers({})


class Clock:
    """Clock that only tests move."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Launched:
    """A `Sleep` with its clock, and its messages to the launcher."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.reports: list[str] = []
        self.sleep = Sleep(10.0, self.reports.append, self.clock)

    def fall_asleep(self) -> None:
        self.clock.now_s += 10.0
        self.sleep.fall_asleep(NO_ANSWERS)

    def wake(self) -> None:
        self.sleep.apply(READY)
        self.sleep.open()


async def entered(sleep: Sleep) -> ExitStack:
    """Return the slot of a request that is in flight."""
    slot = ExitStack()
    await sleep.enter(100, "host", slot)
    return slot


def test_server_without_requests_is_idle_after_the_given_time() -> None:
    launched = Launched()
    launched.clock.now_s = 9.9
    assert not launched.sleep.is_idle
    launched.clock.now_s = 10.0
    assert launched.sleep.is_idle
    launched.sleep.apply(READY)  # a server that has just started is not idle
    assert not launched.sleep.is_idle
    assert not Sleep(0.0, clock=lambda: 1e9).is_idle, "never, unless the user asks for it"


async def test_running_request_keeps_the_server_awake() -> None:
    launched = Launched()
    slot = await entered(launched.sleep)
    launched.fall_asleep()
    assert launched.sleep.is_awake
    slot.close()
    launched.sleep.fall_asleep(NO_ANSWERS)
    assert launched.sleep.is_awake, "the time counts from its end"
    launched.fall_asleep()
    assert launched.reports == [IDLE]


async def test_request_that_arrives_during_the_last_check_keeps_the_server_awake() -> None:
    """The server was idle when Triton was asked for its answers; a request arrives before they do."""
    launched = Launched()
    launched.clock.now_s = 10.0
    assert launched.sleep.is_idle
    await entered(launched.sleep)
    launched.sleep.fall_asleep(NO_ANSWERS)
    assert launched.sleep.is_awake
    assert launched.reports == []


async def test_request_after_the_last_check_waits_for_the_next_start() -> None:
    """The launcher has not yet read that the server is idle, and reports faults and readiness in the meantime."""
    launched = Launched()
    launched.fall_asleep()
    request = asyncio.create_task(entered(launched.sleep))
    for message in (UNREADY, READY):
        launched.sleep.apply(message)
        launched.sleep.open()
        await asyncio.sleep(0)
        assert not request.done(), "Triton is about to be stopped"
    assert launched.reports == [IDLE, WAKE]
    for message in (ASLEEP, UNREADY):
        launched.sleep.apply(message)
    launched.wake()
    await request
    assert launched.reports == [IDLE, WAKE], "the server is woken once"
    launched.fall_asleep()
    assert launched.sleep.is_awake, "the request that has waited is in flight"


async def test_request_cancelled_as_the_server_wakes_is_not_counted() -> None:
    launched = Launched()
    launched.fall_asleep()
    launched.sleep.apply(ASLEEP)
    request = asyncio.create_task(entered(launched.sleep))
    await asyncio.sleep(0)
    launched.wake()
    request.cancel()
    await asyncio.gather(request, return_exceptions=True)
    launched.fall_asleep()
    assert launched.reports == [IDLE, WAKE, IDLE]


async def test_failed_start_refuses_requests_until_the_next_attempt() -> None:
    launched = Launched()
    launched.fall_asleep()
    launched.sleep.apply(ASLEEP)
    waiting = [asyncio.create_task(entered(launched.sleep)) for _ in range(3)]
    await asyncio.sleep(0)
    launched.sleep.apply(WAKE_FAILED)
    for each in waiting:
        with pytest.raises(BadRequest, match="could not start again") as refused:
            await each
        assert refused.value.category == "unavailable"
    with pytest.raises(BadRequest, match="could not start again"):
        await entered(launched.sleep)
    assert launched.reports == [IDLE, WAKE], "a refused request starts nothing"
    assert not launched.sleep.accepts_requests
    launched.sleep.apply(ASLEEP)
    assert launched.sleep.accepts_requests
    next_one = asyncio.create_task(entered(launched.sleep))
    await asyncio.sleep(0)
    assert launched.reports == [IDLE, WAKE, WAKE]
    launched.sleep.apply(STOPPING)
    with pytest.raises(BadRequest, match="the server is stopping"):
        await next_one


async def test_waiting_requests_are_limited_for_each_host(monkeypatch: pytest.MonkeyPatch) -> None:
    launched = Launched()
    launched.sleep._waiting_bytes.limit = 4 * LEAST_BYTES
    launched.fall_asleep()
    greedy = [asyncio.create_task(launched.sleep.enter(1, "greedy", ExitStack())) for _ in range(3)]
    await asyncio.sleep(0)
    assert [each.done() for each in greedy] == [False, False, True], "one host takes at most half"
    with pytest.raises(BadRequest, match="its share of requests that wait"):
        await greedy[2]
    other = asyncio.create_task(launched.sleep.enter(1, "other", ExitStack()))
    await asyncio.sleep(0)
    assert not other.done()
    greedy[0].cancel()
    await asyncio.gather(greedy[0], return_exceptions=True)
    with pytest.raises(BadRequest, match="its share of requests that wait"):
        await launched.sleep.enter(2 * LEAST_BYTES, "greedy", ExitStack())
    launched.sleep.apply(ASLEEP)
    launched.wake()
    await asyncio.gather(greedy[1], other)


async def test_new_proxy_of_a_sleeping_server_wakes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sleeping, "CHECK_S", 0.01)
    launched = Launched()
    launched.sleep.apply(ASLEEP)
    async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
        watching = asyncio.create_task(launched.sleep.watch(channel, lambda: False))
        await until_async(lambda: launched.reports == [WAKE])
        watching.cancel()
    with pytest.raises(BadRequest, match="the server is starting"):
        launched.sleep.answer(MODEL_READY, service_pb2.ModelReadyRequest(name="speech"))


class Indexed(FakeServer):
    """A fake Triton that lists its models."""

    async def RepositoryIndex(self, request: object, context: object) -> service_pb2.RepositoryIndexResponse:
        answer = service_pb2.RepositoryIndexResponse()
        for name in ("speech", "preprocessor", *self.more_models):
            answer.models.add(name=name, version="1", state="READY")
        return answer

    async def ModelMetadata(self, request: object, context: object) -> service_pb2.ModelMetadataResponse:
        return service_pb2.ModelMetadataResponse(name=request.name, platform="ensemble")  # type: ignore[attr-defined]


class Front:
    """A proxy whose server can sleep, and its Triton, which has an address while it runs."""

    def __init__(self, triton: Indexed, channel: grpc.aio.Channel, address: str, launched: Launched) -> None:
        self.triton = triton
        self.channel = channel
        self.address = address
        self.sleep = launched.sleep
        self.launched = launched

    async def fall_asleep(self) -> None:
        """Fall asleep as the proxy's watcher does, and stop Triton."""
        self.launched.clock.now_s += 10.0
        self.sleep.fall_asleep(await LastAnswers.fetch(self.channel))
        assert self.launched.reports[-1] == IDLE
        self.sleep.apply(ASLEEP)


@pytest.fixture
async def front() -> AsyncIterator[Front]:
    triton = Indexed(lambda _: [Chunk(0, text="a cat"), Chunk(1, is_final=True, is_last=True)])
    triton.more_models = ("somebody_elses",)
    launched = Launched()
    config = proxy_config("shared-memory")
    async with grpc.aio.insecure_channel(await triton.start()) as channel:
        server, _ = grpc_listener(config)
        word = Word(CallGate(), lambda: launched.sleep.is_awake, launched.sleep)
        handler = grpc_proxy(config, channel, word, Uploads(), Connections(ConnectionLimits()))
        server.add_generic_rpc_handlers((handler,))
        await server.start()
        yield Front(triton, channel, f"127.0.0.1:{config.grpc_port}", launched)
        await server.stop(0)
    await triton.stop()


async def speak(address: str) -> str:
    async with SpeechClient(address) as client, asyncio.timeout(PATIENCE_S):
        return "".join([event.text async for event in client.speak("hello")])


async def test_sleeping_server_answers_about_itself_without_triton(front: Front) -> None:
    async with SpeechClient(front.address) as client, grpc.aio.insecure_channel(front.address) as channel:
        profile = await client.profile()
        name = await client.server_name()
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        elses = service_pb2.ModelMetadataRequest(name="somebody_elses", version="1")
        about = await stub.ModelMetadata(elses)
        await front.fall_asleep()
        await front.triton.stop()
        assert await client.ready()
        assert await client.profile(refresh=True) == profile
        assert await client.server_name() == name
        assert await stub.ModelMetadata(elses) == about
        assert (await stub.ServerLive(service_pb2.ServerLiveRequest())).live
        assert not (await stub.ModelReady(service_pb2.ModelReadyRequest(name="other"))).ready
        with pytest.raises(grpc.aio.AioRpcError, match="expected a model that the server has, got 'other'"):
            await stub.ModelConfig(service_pb2.ModelConfigRequest(name="other"))
        with pytest.raises(grpc.aio.AioRpcError, match="ModelStatistics: the idle server sleeps"):
            await stub.ModelStatistics(service_pb2.ModelStatisticsRequest())
    readiness = Readiness(front.channel, lambda: False, front.sleep)
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/speech/ready", "/health/live"):
        assert (await readiness(path)).status == 200, path
    assert (await readiness("/v2/models/other/ready")).status == 503
    assert b"\nstretto_asleep 1\n" in (await MetricsPage("/no/metrics", front.sleep)("/metrics")).body
    assert front.launched.reports == [IDLE], "nothing of this wakes the server"
    front.sleep.apply(WAKE_FAILED)
    assert (await readiness("/v2/health/ready")).status == 503
    assert (await readiness("/health/live")).status == 200


async def test_requests_wait_until_the_server_is_awake(front: Front) -> None:
    await front.fall_asleep()
    speaking = [asyncio.create_task(speak(front.address)) for _ in range(3)]
    async with grpc.aio.insecure_channel(front.address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        refused = [answer async for answer in stub.ModelStreamInfer(iter([request("other")]))]
        assert "expected a model that the server has" in refused[0].error_message
    await until_async(lambda: front.sleep._waiting_bytes.held == 3 * LEAST_BYTES)
    assert front.triton.requests == []
    front.launched.wake()
    assert await asyncio.gather(*speaking) == ["a cat"] * 3
    assert front.launched.reports == [IDLE, WAKE]
    await until_async(lambda: not front.sleep._num_active)


async def test_client_that_leaves_or_is_late_does_not_reach_triton(front: Front) -> None:
    await front.fall_asleep()
    async with grpc.aio.insecure_channel(front.address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        late = stub.ModelStreamInfer(iter([request()]), timeout=0.2)
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await late.read()
        assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        leaving = stub.ModelStreamInfer(iter([request()]))
        await until_async(lambda: front.sleep._waiting_bytes.held == LEAST_BYTES)
        leaving.cancel()
        await until_async(lambda: not front.sleep._waiting_bytes.held)
    front.launched.wake()
    assert await speak(front.address) == "a cat"
    assert len(front.triton.requests) == 1


async def test_stream_counts_from_its_first_request_to_its_end(front: Front) -> None:
    goes_on = asyncio.Event()
    front.triton.script = lambda _: [Chunk(0), Until(goes_on), Chunk(1, is_final=True, is_last=True)]
    async with grpc.aio.insecure_channel(front.address) as channel:
        stream = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer()
        await stream.wait_for_connection()
        await front.fall_asleep()  # an open stream without a request does not count
        front.launched.wake()
        await stream.write(request())
        await stream.read()
        front.launched.fall_asleep()
        assert front.sleep.is_awake
        stream.cancel()
        front.launched.fall_asleep()
        assert front.sleep.is_awake, "the models have not yet ended the reply"
        goes_on.set()
        await until_async(lambda: not front.sleep._num_active)
    front.launched.fall_asleep()
    assert not front.sleep.is_awake


async def test_call_of_a_closed_api_wakes_the_server(front: Front) -> None:
    await front.fall_asleep()
    async with grpc.aio.insecure_channel(front.address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        asking = asyncio.ensure_future(
            stub.RepositoryIndex(
                service_pb2.RepositoryIndexRequest(), metadata=(("triton-grpc-protocol-stretto-key", KEY),)
            )
        )
        await until_async(lambda: front.launched.reports == [IDLE, WAKE])
        front.launched.wake()
        assert [model.name for model in (await asking).models] == ["speech", "preprocessor", "somebody_elses"]


async def test_failed_start_reaches_the_client_as_an_error(front: Front) -> None:
    await front.fall_asleep()
    speaking = asyncio.create_task(speak(front.address))
    await until_async(lambda: WAKE in front.launched.reports)
    front.sleep.apply(WAKE_FAILED)
    with pytest.raises(ServerUnavailable, match="could not start again"):
        await speaking
    async with SpeechClient(front.address) as client:
        assert not await client.ready()


async def test_watcher_puts_the_server_to_sleep_and_wakes_it(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sleeping, "CHECK_S", 0.01)
    is_ready = False
    watching = asyncio.create_task(front.sleep.watch(front.channel, lambda: is_ready))
    front.launched.clock.now_s = 10.0
    await asyncio.sleep(0.1)
    assert front.sleep.is_awake, "a server that is starting does not fall asleep"
    is_ready = True
    await until_async(lambda: front.launched.reports == [IDLE])
    front.sleep.apply(ASLEEP)
    assert front.sleep.answer(MODEL_CONFIG, service_pb2.ModelConfigRequest(name="speech"))
    speaking = asyncio.create_task(speak(front.address))
    await until_async(lambda: front.launched.reports == [IDLE, WAKE])
    front.sleep.apply(READY)
    assert await speaking == "a cat"
    watching.cancel()
