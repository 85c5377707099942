"""Fixtures for a gateway in this process, in front of a scripted server."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
from uvicorn import server as uvicorn_server

from stretto_gateway import connection
from stretto_gateway.app import all_routes
from stretto_gateway.command import GatewayServer, make_server
from stretto_gateway.config import GatewayConfig, Limits
from stretto_gateway.encoding import SYNTHETIC
from stretto_gateway.jobs.work import JobOptions
from stretto_gateway.realtime.state import RealtimeOptions
from stretto_gateway.routes import RouteSettings
from tests.client.fake_server import PROFILE, Chunk, FakeServer, Request, Step
from tests.gateway.openai_types import CheckedResponses
from tests.patience import PATIENCE_S, until_async

# uvicorn checks for its exit, and for closed connections, every tenth of a second.
uvicorn_server.asyncio = SimpleNamespace(**vars(asyncio) | {"sleep": lambda seconds: asyncio.sleep(seconds / 20)})
# Both ends of a WebSocket share an event loop, so that a refusal is read before the connection is closed.
connection.LINGER_S = 0.2
all_routes()  # takes a second, here once for all workers, because these are forked later

SPOKEN = [
    Chunk(0, 3840, is_16_bit=True, words=("a",)),
    Chunk(1, 7680, is_16_bit=True, words=("cat",)),
    Chunk(2, 1920, is_16_bit=True, is_final=True, is_last=True),
]
NUM_SAMPLES = 3840 + 7680 + 1920
ALIGNS = PROFILE | {"times_words": False, "options": ["words"]}
ALIGNED = [
    Chunk(0, 3840, is_16_bit=True),
    Chunk(1, None, aligned=(("a", 0.02, 0.1), ("cat", 0.16, 0.22)), is_final=True, is_last=True),
]
HEARD = [Chunk(0, None, text="a cat", is_final=True, is_last=True)]  # a transcript


def sse_events(text: str) -> list[dict[str, Any]]:
    """Return the JSON of a response's server-sent events."""
    data = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(record) for record in data if record != "[DONE]"]


@dataclass
class Running:
    """A running gateway and the server that it uses."""

    url: str
    behind: FakeServer
    server: GatewayServer
    clients: list[openai.AsyncOpenAI] = field(default_factory=list)

    @property
    def app(self) -> Any:
        """The application."""
        return self.server.config.app

    def openai(self, **options: Any) -> openai.AsyncOpenAI:
        """Return OpenAI's own client, without its slow load of certificates."""
        plain = openai.DefaultAsyncHttpxClient(verify=False)
        known = {"base_url": f"{self.url}/v1", "api_key": "unused", "max_retries": 0, "http_client": plain}
        self.clients.append(openai.AsyncOpenAI(**known | options))
        return self.clients[-1]

    def http(self) -> httpx.AsyncClient:
        """Return a plain HTTP client."""
        return httpx.AsyncClient(base_url=self.url, timeout=PATIENCE_S, verify=False, trust_env=False)

    async def metric(self, name: str) -> float:
        """Return the sum of a metric in `/metrics` over all labels."""
        async with self.http() as http:
            lines = (await http.get("/metrics")).text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith((f"{name}{{", f"{name} ")))

    def left(self) -> dict[str, float | None]:
        """Return the number of utterances that did not complete, by reason."""
        registry = self.app.state.gateway.metrics.registry
        labels = {"family": "tiny", "task": "tts"}
        reasons = ("failed", "cancelled")
        return {name: registry.get_sample_value("audio_left_total", labels | {"reason": name}) for name in reasons}

    async def until(self, **metrics: int) -> None:
        """Wait until each of these metrics has its value."""
        async with asyncio.timeout(PATIENCE_S):
            while [await self.metric(name) for name in metrics] != [*metrics.values()]:
                await asyncio.sleep(0.01)

    async def idle(self) -> None:
        """Wait until nothing is generated, open or held any more."""
        await self.until(gateway_active=0, gateway_sessions=0)
        assert not self.app.state.gateway.sessions.held.num_bytes


Start = Callable[..., Awaitable[Running]]


def options_of_routes(settings: dict[str, Any]) -> tuple[RouteSettings, ...]:
    """Take the options of the gateway's own routes out of `settings`, and return them."""
    routes: list[RouteSettings] = []
    for options in (JobOptions, RealtimeOptions):
        names = {option.name for option in fields(options)} & settings.keys()
        routes.append(options(**{name: settings.pop(name) for name in names}))
    return tuple(routes)


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Start a gateway in front of a scripted server; both end with the test."""
    stops: list[Callable[[], Awaitable[Any]]] = []
    failures: list[str] = []

    async def begin(
        script: Callable[[Request], list[Step]] | list[Step] = SPOKEN,
        profile: dict[str, Any] | None = None,
        limits: Limits | None = None,
        keys: tuple[str, ...] = (),
        voices: Path | None = None,
        strict: bool = False,
        model_aliases: dict[str, str] | None = None,
        origins: tuple[str, ...] = (),
        audio_tags: dict[str, str] = SYNTHETIC,
        **settings: Any,
    ) -> Running:
        behind = FakeServer(script if callable(script) else lambda _: script)
        if profile is not None:
            behind.profile = profile
        server = await behind.start()
        listener = socket.create_server(("127.0.0.1", 0))
        limits = limits or Limits(drain_s=1)
        more: dict[str, Any] = {"strict": strict, "model_aliases": model_aliases or {}}
        more |= {"cors_origins": origins, "audio_tags": audio_tags}
        more |= {"routes": (*options_of_routes(settings), *settings.pop("routes", ()))}
        config = GatewayConfig(server, keys=keys, limits=limits, voices=voices, **more, **settings)
        gateway = make_server(config, listener)
        gateway.config.app.add_middleware(CheckedResponses, failures=failures)  # type: ignore[union-attr]
        serving = asyncio.ensure_future(gateway.serve([listener]))
        await until_async(lambda: gateway.started)

        running = Running(f"http://127.0.0.1:{listener.getsockname()[1]}", behind, gateway)

        async def stop() -> None:
            for client in running.clients:
                await client.close()
            gateway.should_exit = True
            await serving
            await behind.stop()

        stops.append(stop)
        return running

    yield begin
    for stop in stops:
        await stop()
    assert not failures, "responses that differ from OpenAI's types"
