"""Where a request of a soak is sent, and what comes back: past the gateway, or through it."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import httpx
import numpy as np

from stretto_client import ClientError, RequestRefused, ServerFull, ServerUnavailable, SpeechClient
from stretto_client.errors import ServerFailed, TimedOut, Timeouts
from stretto_client.long_speech import Speech

Door = Literal["grpc", "gateway"]
REFUSALS: dict[int, type[ClientError]] = {400: RequestRefused, 429: ServerFull, 503: ServerUnavailable}
SAMPLE_BYTES = 2


class Heard(Protocol):
    """What a reader takes of an event."""

    @property
    def text(self) -> str:
        """What is written."""
        ...

    @property
    def pcm(self) -> np.ndarray | None:
        """What is spoken."""
        ...

    @property
    def is_final(self) -> bool:
        """Whether it is the last."""
        ...


class Ask(Protocol):
    """A request that may be sent again and again."""

    @property
    def name(self) -> str:
        """Its own."""
        ...

    @property
    def kind(self) -> str:
        """How the report counts it."""
        ...

    @property
    def door(self) -> Door:
        """Where it is sent."""
        ...

    def open(self, address: str, timeouts: Timeouts) -> AbstractAsyncContextManager[AsyncIterator[Heard]]:
        """Send it there; the events of its answer, which end with a ClientError where it does."""
        ...


@dataclass(frozen=True, slots=True)
class GrpcAsk:
    """One for the server itself. is_near: the samples come through shared memory, where the address has any."""

    name: str
    kind: str
    send: Callable[[SpeechClient], Speech]
    is_near: bool = False
    door: ClassVar[Door] = "grpc"

    @asynccontextmanager
    async def open(self, address: str, timeouts: Timeouts) -> AsyncIterator[AsyncIterator[Heard]]:
        """See Ask."""
        memory: Literal["system"] | None = "system" if self.is_near and address.startswith("localhost:") else None
        async with SpeechClient(address, timeouts, shared_memory=memory) as client, self.send(client) as stream:
            yield stream


@dataclass(frozen=True, slots=True)
class Part:
    """Samples as the gateway sends them."""

    pcm: np.ndarray | None = None
    is_final: bool = False
    text: ClassVar[str] = ""


@dataclass(frozen=True, slots=True)
class GatewayAsk:
    """One for the gateway: OpenAI's speech, as samples without a header."""

    name: str
    kind: str
    body: dict[str, Any]
    door: ClassVar[Door] = "gateway"

    @asynccontextmanager
    async def open(self, address: str, timeouts: Timeouts) -> AsyncIterator[AsyncIterator[Heard]]:
        """See Ask."""
        limits = httpx.Timeout(timeouts.between_s)
        async with httpx.AsyncClient(base_url=f"http://{address}", timeout=limits) as client:
            yield self._parts(client)

    async def _parts(self, client: httpx.AsyncClient) -> AsyncIterator[Heard]:
        try:
            async with client.stream("POST", "/v1/audio/speech", json=self.body) as answer:
                if answer.status_code != httpx.codes.OK:
                    kind = REFUSALS.get(answer.status_code, ServerFailed)
                    raise kind(f"{answer.status_code}: {(await answer.aread()).decode()}")
                left = b""
                async for data in answer.aiter_bytes():
                    left += data
                    whole = len(left) - len(left) % SAMPLE_BYTES
                    yield Part(np.frombuffer(left[:whole], np.int16))
                    left = left[whole:]
        except httpx.TimeoutException as error:
            raise TimedOut(type(error).__name__) from None
        except httpx.TransportError as error:
            raise ServerUnavailable(f"{type(error).__name__}: {error}") from None
        yield Part(is_final=True)
