"""Fixtures for a proxy in this process, in front of a fake Triton."""

import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest

from stretto.disconnects import Disconnects
from stretto.proxy.__main__ import grpc_listener, grpc_proxy
from stretto.proxy.connections import ConnectionLimits, Connections
from stretto.proxy.grpc_proxy import GrpcProxy
from stretto.proxy.messages import ProxyConfig
from stretto.proxy.sleep import Sleep
from stretto.proxy.triton_stream import CallGate, Uploads
from tests.client.fake_server import Chunk, FakeServer
from tests.ports import free_ports

KEY = "the key of this start"
FOLDERS = tempfile.TemporaryDirectory()  # ends with this process


class Proxied:
    """A fake Triton, its proxy with its address, and the file that reports client disconnects to models."""

    def __init__(
        self, triton: FakeServer, address: str, given_up: list[str], disconnects: Disconnects, handler: GrpcProxy
    ) -> None:
        self.triton, self.address, self.given_up, self.disconnects = triton, address, given_up, disconnects
        self.handler = handler


@dataclass
class Word:
    """Last message from the launcher."""

    gate: CallGate
    is_ready: Callable[[], bool]
    sleep: Sleep = field(default_factory=Sleep)


def proxy_config(*allowed: str, cloning_models: tuple[str, ...] = ()) -> ProxyConfig:
    ports = free_ports(3)
    disconnects = Path(tempfile.mkdtemp(dir=FOLDERS.name)) / "disconnects"
    Disconnects.create(disconnects)
    places = ("/no/grpc", "/no/metrics", str(disconnects))
    limits = {"max_request_bytes": 1_000_000, "cloning_models": cloning_models}
    return ProxyConfig("127.0.0.1", *ports, *places, KEY, allowed, **limits)


def grpc_server(
    config: ProxyConfig,
    channel: grpc.aio.Channel,
    is_ready: Callable[[], bool] = lambda: True,
    uploads: Uploads | None = None,
    gate: CallGate | None = None,
) -> grpc.aio.Server:
    """Return the proxy's gRPC server for the Triton behind this channel, not yet started."""
    return served(config, channel, is_ready, uploads, gate)[0]


def served(
    config: ProxyConfig,
    channel: grpc.aio.Channel,
    is_ready: Callable[[], bool] = lambda: True,
    uploads: Uploads | None = None,
    gate: CallGate | None = None,
) -> tuple[grpc.aio.Server, GrpcProxy]:
    """Return the proxy's gRPC server, not yet started, and its handler."""
    server, _ = grpc_listener(config)
    launcher = Word(gate or CallGate(), is_ready)
    handler = grpc_proxy(config, channel, launcher, uploads or Uploads(), Connections(ConnectionLimits()))
    server.add_generic_rpc_handlers((handler,))
    return server, handler


async def proxied(*allowed: str, cloning_models: tuple[str, ...] = ()) -> AsyncIterator[Proxied]:
    triton = FakeServer(lambda _: [Chunk(0, text="a cat"), Chunk(1, is_final=True, is_last=True)])
    triton.more_models = ("somebody_elses",)
    config = proxy_config(*allowed, cloning_models=cloning_models)
    async with grpc.aio.insecure_channel(await triton.start()) as channel:
        given_up = list[str]()
        server, handler = served(config, channel, gate=CallGate(given_up.append))
        await server.start()
        address, disconnects = f"127.0.0.1:{config.grpc_port}", Disconnects(Path(config.disconnects))
        yield Proxied(triton, address, given_up, disconnects, handler)
        await server.stop(0)
    await triton.stop()


@pytest.fixture
async def proxy() -> AsyncIterator[Proxied]:
    async for each in proxied():
        yield each


@pytest.fixture
async def open_proxy() -> AsyncIterator[Proxied]:
    async for each in proxied("shared-memory", "models"):
        yield each
