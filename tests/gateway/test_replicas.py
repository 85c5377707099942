"""Replicas behind one gateway: the least busy one speaks, and another one if it is lost."""

import asyncio
import weakref
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry

from stretto_client import ServerUnavailable, Timeouts
from stretto_gateway.command import arguments, read_config
from stretto_gateway.config import Limits
from stretto_gateway.replicas import Replicas
from stretto_gateway.routed import Lease, RoutedClient, _ended_with
from tests.client.fake_server import Chunk, FakeServer, Request, Step, Until
from tests.gateway.conftest import Start

ENDED = Chunk(1, 640, is_final=True, is_last=True)


class TwoServers:
    """Two servers, each of which completes its replies once `may_end` is set, and a client for both."""

    def __init__(self) -> None:
        self.may_end = asyncio.Event()
        self.servers = [FakeServer(self.script), FakeServer(self.script)]
        self.registry = CollectorRegistry()

    def script(self, request: Request) -> list[Step]:
        return [Chunk(0, 640), Until(self.may_end), ENDED]

    async def start(self) -> None:
        self.addresses = [await server.start() for server in self.servers]
        self.replicas = Replicas(self.addresses, self.registry)
        self.client = RoutedClient(self.replicas.choose)

    async def stop(self) -> None:
        self.may_end.set()
        await self.client.close()
        await self.replicas.close()
        for server in self.servers:
            await server.stop()

    def metric(self, name: str, number: int) -> float | None:
        return self.registry.get_sample_value(f"gateway_replica_{name}", {"replica": self.addresses[number]})

    async def speak(self, began: asyncio.Event) -> int:
        """Speak a text, and return the number of its samples."""
        num_samples = 0
        async with self.client.speak("a", check="off", seed=1) as stream:
            async for event in stream:
                num_samples += 0 if event.pcm is None else len(event.pcm)
                began.set()
        return num_samples


@pytest.fixture
async def two() -> AsyncIterator[TwoServers]:
    servers = TwoServers()
    await servers.start()
    yield servers
    await servers.stop()


async def begin(two: TwoServers, number: int) -> list["asyncio.Task[int]"]:
    """Begin a number of replies, one after the other."""
    replies = []
    for _ in range(number):
        began = asyncio.Event()
        replies.append(asyncio.create_task(two.speak(began)))
        await began.wait()
    return replies


async def test_utterances_are_spread_over_the_replicas(two: TwoServers) -> None:
    replies = await begin(two, 6)
    assert [len(server.requests) for server in two.servers] == [3, 3]
    assert [two.metric("active", number) for number in (0, 1)] == [3.0, 3.0]
    two.may_end.set()
    assert await asyncio.gather(*replies) == [1280] * 6
    assert [two.metric("active", number) for number in (0, 1)] == [0.0, 0.0]


async def test_loss_of_a_replica_ends_only_its_own_utterances(two: TwoServers) -> None:
    replies = await begin(two, 4)
    await two.servers[0].stop()
    replies += await begin(two, 2)
    assert len(two.servers[1].requests) == 4
    two.may_end.set()
    results = await asyncio.gather(*replies, return_exceptions=True)
    assert results.count(1280) == 4
    assert sum(isinstance(result, ServerUnavailable) for result in results) == 2
    assert await two.client.ready()


async def test_loss_of_all_replicas_is_unavailable(two: TwoServers) -> None:
    for server in two.servers:
        await server.stop()
    with pytest.raises(ServerUnavailable):
        await two.speak(asyncio.Event())
    assert not await two.client.ready()


def test_replicas_are_given_by_their_addresses() -> None:
    words = ["--replica", "localhost:8001", "--replica", "localhost:8011"]
    assert read_config(arguments().parse_args(words)).replicas == ("localhost:8001", "localhost:8011")
    with pytest.raises(ValueError, match="expected no --server with a name"):
        read_config(arguments().parse_args([*words, "--server", "tts=localhost:8001"]))


async def test_replies_of_replicas_have_the_timeouts_of_the_gateway(start: Start, two: TwoServers) -> None:
    gateway = await start(replicas=tuple(two.addresses), limits=Limits(first_s=40.0, drain_s=1))
    async with gateway.app.state.gateway.client._lent("") as (client, _):
        assert client.timeouts.first_s == 40.0
        assert client.timeouts.total_s > Timeouts().total_s


async def test_server_does_not_keep_its_ended_streams() -> None:
    class Stream:
        def cancel(self) -> None:
            pass

    stream = Stream()
    is_kept = weakref.ref(stream)
    lease = Lease("a", "127.0.0.1:1", asyncio.get_running_loop().create_future())
    async with _ended_with(lease, cast(Any, stream)):
        pass
    del stream
    assert is_kept() is None
