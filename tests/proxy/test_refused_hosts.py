"""Hosts that the models have refused, and what the proxy then refuses without asking them."""

from contextlib import ExitStack

import pytest
from tritonclient.grpc import service_pb2

from stretto.engine.permits import Permits
from stretto.errors import NoCapacity
from stretto.proxy import refused_hosts
from stretto.proxy.access import OurModels
from stretto.proxy.apis import CALLER_HEADER, KEY_HEADER
from stretto.proxy.infer_request import BadRequest
from stretto.proxy.refused_hosts import FORGET_S, MAX_HOSTS, PROBE_S, RefusedHosts
from tests.client.fake_server import Chunk, ErrorText, response
from tests.proxy.conftest import KEY, Proxied
from tests.proxy.test_grpc_proxy import answers, request

FULL = "full: 80 sequences are already in flight (limits: 16 running, 64 waiting), and this reply has 1; try again"
HEAD, ENSEMBLES = request(), OurModels().ensembles


def error_of(message: str) -> bytes:
    return service_pb2.ModelStreamInferResponse(error_message=message).SerializeToString()


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def refused(clock: Clock) -> RefusedHosts:
    hosts = RefusedHosts(ENSEMBLES, clock)
    hosts.note("a", error_of(f"in ensemble 'speech', {FULL}"))
    return hosts


def may_begin(hosts: RefusedHosts, host: str = "a", head: service_pb2.ModelInferRequest = HEAD) -> bool:
    try:
        hosts.check(head, host)
    except BadRequest as error:
        return (error.client_message, error.request_id) != (FULL, head.id)
    return True


def test_each_end_of_a_reply_admits_one_request_of_a_refused_host(refused: RefusedHosts) -> None:
    assert not may_begin(refused)
    refused.note("b", response(Chunk(3)).SerializeToString())
    assert not may_begin(refused)
    for host in ("b", "c"):
        refused.note(host, response(Chunk(4, is_last=True)).SerializeToString())
    assert may_begin(refused)
    refused.note("a", error_of(FULL))
    assert [may_begin(refused) for _ in range(3)] == [True, False, False]


def test_one_request_in_each_interval_is_not_refused(refused: RefusedHosts, clock: Clock) -> None:
    for _ in range(9):
        clock.now_s += PROBE_S + 0.001
        assert [may_begin(refused) for _ in range(2)] == [True, False]
    refused.note("a", error_of(FULL))
    assert not may_begin(refused)


def test_refusal_is_forgotten_after_a_second(refused: RefusedHosts, clock: Clock) -> None:
    clock.now_s += FORGET_S
    assert all(may_begin(refused) for _ in range(3))


def test_other_hosts_models_and_texts_in_progress_are_not_refused(refused: RefusedHosts) -> None:
    assert may_begin(refused, "b")
    assert may_begin(refused, head=request("somebody_elses"))
    part = request()
    part.inputs.add(name="session", datatype="BYTES", shape=[1])
    assert may_begin(refused, head=part)


@pytest.mark.parametrize(
    "answer",
    [
        error_of("full: 4 sessions are open, try again"),
        error_of("invalid request: text: expected 80 sequences are already in flight"),
        error_of(f"invalid request: task: expected one of tts, asr, got '{FULL}'"),
        error_of(f"[request id: x] {FULL}] in ensemble 'speech', invalid request: text: expected a string"),
        error_of(f"[request id: x] in ensemble 'speech', {FULL}] in ensemble 'speech', failed: utterance"),
        response(Chunk(text=FULL)).SerializeToString(),
    ],
)
def test_only_refusals_for_replies_in_flight_are_remembered(answer: bytes, clock: Clock) -> None:
    hosts = RefusedHosts(ENSEMBLES, clock)
    hosts.note("a", answer)
    assert may_begin(hosts)


def test_number_of_hosts_is_bounded(clock: Clock) -> None:
    hosts = RefusedHosts(ENSEMBLES, clock)
    for number in range(3 * MAX_HOSTS // 2):
        hosts.note(f"host {number}", error_of(FULL))
    refused = [number for number in range(3 * MAX_HOSTS // 2) if not may_begin(hosts, f"host {number}")]
    assert refused == list(range(MAX_HOSTS, 3 * MAX_HOSTS // 2))


@pytest.mark.parametrize("host", ["", "2001:db8::/64"])
@pytest.mark.parametrize("target_s", [None, 0.25])
def test_refusals_of_the_engine_are_recognised(clock: Clock, target_s: float | None, host: str) -> None:
    permits = Permits(8, 0, lambda _: False, lambda: 0, target_s)
    hosts = RefusedHosts(ENSEMBLES, clock)
    messages = list[str]()
    with ExitStack() as held:
        for number in range(9):
            try:
                held.enter_context(permits.acquire(str(number), 1, host=host)).record_first_frame(3600.0)
            except NoCapacity as error:
                messages.append(str(error))
    assert messages
    assert ("maximum for a first frame" in messages[0]) == (target_s is not None)
    hosts.note("a", error_of(f"full: {messages[0]}"))
    with pytest.raises(BadRequest):
        hosts.check(HEAD, "a")


def test_refusal_of_a_request_with_an_id_is_recognised(clock: Clock) -> None:
    hosts = RefusedHosts(ENSEMBLES, clock)
    hosts.note("a", error_of(f"[request id: mine] in ensemble 'speech', {FULL}"))
    assert not may_begin(hosts)


@pytest.fixture
def full_proxy(proxy: Proxied, monkeypatch: pytest.MonkeyPatch) -> Proxied:
    for name in ("FORGET_S", "PROBE_S"):
        monkeypatch.setattr(refused_hosts, name, 3600.0)  # longer than a test on a busy machine
    proxy.triton.script = lambda _: [ErrorText(FULL)]
    return proxy


async def test_proxy_refuses_without_asking_the_models(full_proxy: Proxied) -> None:
    first, second = [(await answers(full_proxy.address, request()))[0] for _ in range(2)]
    assert first.error_message == second.error_message == FULL
    assert second.infer_response.id == HEAD.id
    assert len(full_proxy.triton.requests) == 1
    other = [(CALLER_HEADER, "5f3a"), (KEY_HEADER, KEY)]
    await answers(full_proxy.address, request(), metadata=other)
    assert len(full_proxy.triton.requests) == 2


async def test_end_of_a_reply_admits_a_request_again(full_proxy: Proxied) -> None:
    await answers(full_proxy.address, request())
    full_proxy.triton.script = lambda _: [Chunk(0, is_final=True, is_last=True)]
    other = [(CALLER_HEADER, "5f3a"), (KEY_HEADER, KEY)]
    await answers(full_proxy.address, request(), metadata=other)
    (answer,) = await answers(full_proxy.address, request())
    assert not answer.error_message
