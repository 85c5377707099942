"""A client of several servers: each utterance goes to the one that somebody else chooses for it."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterable, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from stretto_client import ClientError, ModelProfile, ServerUnavailable, SpeechClient, Timeouts
from stretto_client.inputs import Audio
from stretto_client.long_speech import Speech
from stretto_client.produced_speech import Items, ProducedSpeech

ATTEMPTS = 4  # servers that are asked for an utterance of which nothing has come yet
READY_S = 4.0  # less than the gateway gives it

Begin = Callable[[SpeechClient], Speech]


@dataclass(frozen=True)
class Lease:
    """A server for one utterance: its name, the address of its gRPC service, and what is done once it is lost."""

    name: str
    server: str
    lost: "asyncio.Future[None]"


Choose = Callable[[str, tuple[str, ...]], AbstractAsyncContextManager[Lease]]
"""A server for the conversation of that key ('' for any), none of those names; ServerUnavailable where there is none.
It is the busier by one for as long as the block runs."""


class RoutedClient:
    """What the gateway uses of SpeechClient, by servers that `choose` gives.

    An utterance whose server takes nothing now is begun anew at another one, unless something of it has come; one whose
    server is lost ends with ServerUnavailable.
    """

    def __init__(self, choose: Choose, timeouts: Timeouts | None = None):
        self._choose, self._timeouts = choose, timeouts or Timeouts()
        self._clients: dict[str, SpeechClient] = {}
        self._profile: ModelProfile | None = None

    def speak(self, text: str | AsyncIterable[str], /, **options: Any) -> Speech:
        """As SpeechClient's; a text that is still being written stays where it was begun."""
        attempts = ATTEMPTS if isinstance(text, str) else 1
        return self._routed("", lambda client: client.speak(text, **options), attempts)

    def transcribe(self, audio: Audio, /, **options: Any) -> Speech:
        """As SpeechClient's."""
        return self._routed("", lambda client: client.transcribe(audio, **options))

    def converse(self, messages: list[dict[str, Any]], /, *audio: Audio, **options: Any) -> Speech:
        """As SpeechClient's; the turns of one conversation go to one server, as long as that has room."""
        return self._routed(
            conversation_key(messages, *audio), lambda client: client.converse(messages, *audio, **options)
        )

    async def profile(self, refresh: bool = False) -> ModelProfile:
        """What the servers serve, as one of them says."""
        if self._profile is None or refresh:
            async with self._lent("") as (client, _):
                self._profile = await client.profile(refresh=True)
        return self._profile

    async def ready(self) -> bool:
        """Whether some server would speak."""
        with suppress(ClientError, TimeoutError):
            async with asyncio.timeout(READY_S), self._lent("") as (client, _):
                return await client.ready()
        return False

    async def close(self) -> None:
        """Leave all servers."""
        await asyncio.gather(*(client.close() for client in self._clients.values()))
        self._clients.clear()

    def _routed(self, key: str, begin: Begin, attempts: int = ATTEMPTS) -> Speech:
        return ProducedSpeech(partial(self._produce, key, begin, attempts))

    async def _produce(self, key: str, begin: Begin, attempts: int, items: Items) -> None:
        refused: list[str] = []
        refusal: ServerUnavailable | None = None
        has_begun = False
        while True:
            num_refused = len(refused)
            try:
                async with self._lent(key, tuple(refused)) as (client, lease):
                    refused.append(lease.name)
                    async with begin(client) as stream, _ended_with(lease, stream):
                        async for event in stream:
                            await items.put(event)
                            has_begun = True
                return
            except ServerUnavailable as error:
                if len(refused) == num_refused:  # there is no other
                    raise refusal or error from None
                if has_begun or len(refused) == attempts:
                    raise
                refusal = error

    @asynccontextmanager
    async def _lent(self, key: str, refused: tuple[str, ...] = ()) -> AsyncIterator[tuple[SpeechClient, Lease]]:
        async with self._choose(key, refused) as lease:
            if lease.server not in self._clients:
                self._clients[lease.server] = SpeechClient(lease.server, self._timeouts)
            yield self._clients[lease.server], lease


@asynccontextmanager
async def _ended_with(lease: Lease, stream: Speech) -> AsyncIterator[None]:
    """End the stream where its server is lost: ServerUnavailable then, at once and not when a time-out is over."""
    lease.lost.add_done_callback(lambda _: stream.cancel())
    try:
        yield
    except ClientError:
        if not lease.lost.done() or lease.lost.cancelled():
            raise
        raise ServerUnavailable(f"{lease.server}: the server that spoke has ended; try again") from None


def conversation_key(messages: list[dict[str, Any]], *audio: Audio) -> str:
    """What all turns of a conversation have in common, and other conversations have not: all up to the first user's."""
    first = next((n for n, turn in enumerate(messages) if turn.get("role") == "user"), len(messages))
    opening = messages[: first + 1]
    digest = hashlib.blake2b(json.dumps(opening, sort_keys=True).encode(), digest_size=16)
    heard = [turn for turn in opening if turn.get("audio") == "audio"]
    for content in audio[: len(heard)]:
        if isinstance(content, bytes):
            digest.update(hashlib.blake2b(content, digest_size=16).digest())
    return digest.hexdigest()
