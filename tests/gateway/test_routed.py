"""Utterances on several servers: routing, retries on another server, and the loss of a server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from starlette.types import Receive, Scope, Send

from stretto_client import RequestRefused, ServerFull, ServerUnavailable, Speech
from stretto_gateway.app import make_app
from stretto_gateway.config import GatewayConfig
from stretto_gateway.routed import ATTEMPTS, Lease, RoutedClient, conversation_key
from tests.client.fake_server import Chunk, ErrorText, FakeServer, Step, Until
from tests.client.test_live_speech import Listener, recorded
from tests.patience import PATIENCE_S

SPOKEN: list[Step] = [Chunk(0), Chunk(1, is_final=True, is_last=True)]
GATEWAYS: list[Step] = [Chunk(0, 640, is_16_bit=True, is_final=True, is_last=True)]
BUSY: list[Step] = [ErrorText("unavailable: a part of the server has ended; try again")]


class Fleet:
    """Scripted servers by name. The fleet selects the first that is not excluded, and records the calls."""

    def __init__(self) -> None:
        self.servers: dict[str, str] = {}
        self.fakes: dict[str, FakeServer] = {}
        self.asked: list[tuple[str, tuple[str, ...]]] = []
        self.leased: dict[str, asyncio.Future[None]] = {}

    async def add(self, name: str, script: list[Step]) -> None:
        self.fakes[name] = FakeServer(lambda _: script)
        self.servers[name] = await self.fakes[name].start()

    @asynccontextmanager
    async def choose(self, key: str, refused: tuple[str, ...]) -> AsyncIterator[Lease]:
        self.asked.append((key, refused))
        name = next((name for name in self.servers if name not in refused), None)
        if name is None:
            raise ServerUnavailable("no server takes requests now")
        self.leased[name] = asyncio.get_running_loop().create_future()
        try:
            yield Lease(name, self.servers[name], self.leased[name])
        finally:
            self.leased.pop(name).cancel()


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    made = Fleet()
    yield made
    for fake in made.fakes.values():
        await fake.stop()


@pytest.fixture
async def client(fleet: Fleet) -> AsyncIterator[RoutedClient]:
    routed = RoutedClient(fleet.choose)
    yield routed
    await routed.close()


async def events(speech: Speech) -> int:
    async with speech:
        return len([event async for event in speech])


async def test_utterance_holds_its_lease_until_it_ends(fleet: Fleet, client: RoutedClient) -> None:
    go_on = asyncio.Event()
    await fleet.add("a", [Chunk(0), Until(go_on), Chunk(1, is_final=True, is_last=True)])
    async with client.speak("A cat.") as speech:
        await anext(speech)
        assert set(fleet.leased) == {"a"}
        go_on.set()
        assert [event.is_final async for event in speech] == [True]
        await asyncio.wait([speech._task])
    assert not fleet.leased
    assert fleet.asked == [("", ())]


async def test_client_disconnect_returns_the_lease(fleet: Fleet, client: RoutedClient) -> None:
    await fleet.add("a", [Chunk(0), Until(asyncio.Event())])
    async with client.speak("A cat.") as speech:
        await anext(speech)
    assert not fleet.leased


async def test_routed_client_skips_a_busy_server(fleet: Fleet, client: RoutedClient) -> None:
    await fleet.add("a", BUSY)
    await fleet.add("b", SPOKEN)
    assert await events(client.speak("A cat.")) == 2
    assert fleet.asked == [("", ()), ("", ("a",))]


async def test_refusal_by_all_servers_is_reported(fleet: Fleet, client: RoutedClient) -> None:
    for name in "abcdefg":
        await fleet.add(name, BUSY)
    with pytest.raises(ServerUnavailable, match="try again"):
        await events(client.speak("A cat."))
    assert len(fleet.asked) == ATTEMPTS
    fleet.servers.clear()
    with pytest.raises(ServerUnavailable, match="no server"):
        await events(client.speak("A cat."))


async def test_full_single_server_is_reported(fleet: Fleet, client: RoutedClient) -> None:
    await fleet.add("a", [ErrorText("full: as many utterances as it takes")])
    with pytest.raises(ServerFull, match="as many"):
        await events(client.speak("A cat."))
    assert fleet.asked == [("", ()), ("", ("a",))]


async def test_started_speech_is_not_retried_on_another_server(fleet: Fleet, client: RoutedClient) -> None:
    await fleet.add("a", [Chunk(0), *BUSY])
    await fleet.add("b", SPOKEN)
    with pytest.raises(ServerUnavailable, match="a part of the server"):
        await events(client.speak("A cat."))
    assert len(fleet.asked) == 1


async def test_speech_of_which_nothing_was_sent_is_retried_on_another_server(
    fleet: Fleet, client: RoutedClient
) -> None:
    """The first server ends after a faulty attempt, which was held back."""
    silence = np.zeros(48_000, np.int16)
    replies = iter([[Chunk(0, len(silence), is_16_bit=True, pcm=silence)], BUSY])
    await fleet.add("a", [])
    fleet.fakes["a"].script = lambda _: next(replies)
    await fleet.add("b", SPOKEN)
    async with client.speak("A cat.", hold_s=10.0, seed=1) as speech:
        heard = [event async for event in speech]
    assert any(event.redrawn_s == 3.0 for event in heard)
    assert sum(len(event.pcm) for event in heard if event.pcm is not None) == 2 * 640
    assert len(fleet.asked) == 2


async def test_refused_requests_are_not_retried_on_other_servers(fleet: Fleet, client: RoutedClient) -> None:
    await fleet.add("a", [ErrorText("invalid request: voice: expected slt or rms, got 'x'")])
    await fleet.add("b", SPOKEN)
    with pytest.raises(RequestRefused, match="voice"):
        await events(client.speak("A cat."))


async def test_streamed_text_is_not_rerouted_to_another_server(fleet: Fleet, client: RoutedClient) -> None:
    async def pieces() -> AsyncIterator[str]:
        yield "A cat."

    await fleet.add("a", BUSY)
    await fleet.add("b", SPOKEN)
    with pytest.raises(ServerUnavailable):
        await events(client.speak(pieces()))


async def test_stream_of_a_lost_server_fails_without_a_timeout(fleet: Fleet, client: RoutedClient) -> None:
    await fleet.add("a", [Chunk(0), Until(asyncio.Event())])
    async with client.speak("A cat.") as speech:
        await anext(speech)
        fleet.leased["a"].set_result(None)
        with pytest.raises(ServerUnavailable, match="the server of this stream has ended"):
            await anext(speech)


async def test_routed_readiness_and_profile_come_from_any_server(fleet: Fleet, client: RoutedClient) -> None:
    assert not await client.ready()
    await fleet.add("a", SPOKEN)
    assert await client.ready()
    assert (await client.profile()).family == "tiny"
    asked = len(fleet.asked)
    await client.profile()
    assert len(fleet.asked) == asked


async def test_routed_gateway_uses_the_chosen_server(fleet: Fleet) -> None:
    await fleet.add("a", BUSY)
    await fleet.add("b", GATEWAYS)
    app = make_app(GatewayConfig(""), lambda: RoutedClient(fleet.choose))

    async def with_state(scope: Scope, receive: Receive, send: Send) -> None:
        await app({"state": {}} | dict(scope), receive, send)

    body = {"model": "tts-1", "input": "A cat.", "response_format": "pcm"}
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=httpx.ASGITransport(with_state)) as http:
        assert (await http.get("http://gateway/health/ready")).status_code == 200
        answer = await http.post("http://gateway/v1/audio/speech", json=body)
        assert (answer.status_code, len(answer.content)) == (200, 2 * 640)
        fleet.servers.clear()
        assert (await http.get("http://gateway/health/ready")).status_code == 503
        refusal = await http.post("http://gateway/v1/audio/speech", json=body)
        assert (refusal.status_code, refusal.json()["error"]["code"]) == (503, "unavailable")


def test_conversation_key_depends_on_its_first_turns() -> None:
    system, first = {"role": "system", "text": "Be brief."}, {"role": "user", "text": "Hello"}
    key = conversation_key([system, first])
    later = [system, first, {"role": "assistant", "text": "Hi"}, {"role": "user", "text": "Bye"}]
    assert conversation_key(later) == key
    assert conversation_key([system, {"role": "user", "text": "Bye"}]) != key
    spoken = [system, {"role": "user", "audio": "audio"}]
    assert conversation_key(spoken, b"one") != conversation_key(spoken, b"two")
    assert conversation_key([*spoken, {"role": "user", "audio": "audio"}], b"one", b"two") == (
        conversation_key(spoken, b"one")
    )


async def test_recording_is_transcribed_by_another_server_if_one_is_busy(fleet: Fleet, client: RoutedClient) -> None:
    await fleet.add("a", BUSY)
    await fleet.add("b", SPOKEN)
    assert await events(client.transcribe((np.zeros(100, np.float32), 16_000))) == 2
    assert fleet.asked == [("", ()), ("", ("a",))]


@pytest.mark.parametrize("method", ["transcribe_live", "talk"])
async def test_live_audio_is_not_moved_to_another_server(fleet: Fleet, client: RoutedClient, method: str) -> None:
    async def pieces() -> AsyncIterator[NDArray[np.float32]]:
        yield np.zeros(100, np.float32)

    await fleet.add("a", BUSY)
    await fleet.add("b", SPOKEN)
    with pytest.raises(ServerUnavailable, match="a part of the server has ended"):
        await events(getattr(client, method)(pieces(), 24_000))
    assert fleet.asked == [("", ())]


@pytest.mark.parametrize("method", ["transcribe_live", "talk"])
async def test_live_audio_is_heard_by_the_chosen_server(fleet: Fleet, client: RoutedClient, method: str) -> None:
    listener = Listener()
    fleet.servers["a"] = await listener.server.start()
    live = getattr(client, method)(recorded(np.full(100, 0.5, np.float32)), 24_000)
    async with asyncio.timeout(PATIENCE_S), live as speech:
        events = [event async for event in speech]
    assert ("".join(event.text for event in events), listener.pcm) == ("a word", [0.5] * 100)
    await listener.server.stop()
