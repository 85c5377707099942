"""A gateway in this process in front of a real server, and OpenAI's client for it."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import openai
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from stretto_client.errors import Timeouts
from stretto_client.manifest import FileSigner
from stretto_gateway.command import make_server
from stretto_gateway.config import CacheSettings, GatewayConfig
from tests.patience import PATIENCE_S

PATIENT = Timeouts(PATIENCE_S, PATIENCE_S, PATIENCE_S)  # a busy machine is no failure


@asynccontextmanager
async def gateway_port(
    grpc_port: int,
    voices: Path | None = None,
    keys: tuple[str, ...] = (),
    cache: CacheSettings | None = None,
    signing_key: Ed25519PrivateKey | None = None,
    file_signer: FileSigner | None = None,
    admin_keys: tuple[str, ...] = (),
    **others: int,
) -> AsyncIterator[int]:
    """Run a gateway during the `with` block and yield its port.

    Args:
        grpc_port: Port of the server, which has the name `first` if there are others.
        voices: Folder of uploaded voices.
        keys: API keys.
        cache: Settings of the speech cache.
        signing_key: Key of receipts.
        file_signer: Signer of manifests by that key.
        admin_keys: Keys for the paths that change the server.
        others: Ports of other servers by name.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    named = {"first": grpc_port, **others} if others else {}
    servers = {name: f"localhost:{port}" for name, port in named.items()}
    config = GatewayConfig(
        f"localhost:{grpc_port}",
        voices=voices,
        keys=keys,
        named_servers=servers,
        cache=cache,
        signing_key=signing_key,
        file_signer=file_signer,
        admin_keys=admin_keys,
    )
    gateway = make_server(config, listener)
    serving = asyncio.ensure_future(gateway.serve([listener]))
    while not gateway.started:
        await asyncio.sleep(0.01)
    for server in gateway.config.app.state.gateway.servers.all:
        server.client.timeouts = PATIENT
    yield listener.getsockname()[1]
    gateway.should_exit = True
    await serving


@asynccontextmanager
async def openai_client(grpc_port: int) -> AsyncIterator[openai.AsyncOpenAI]:
    """Yield the client while the gateway runs."""
    async with gateway_port(grpc_port) as port:
        url = f"http://127.0.0.1:{port}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="unused", max_retries=0, timeout=PATIENCE_S) as opened:
            yield opened
