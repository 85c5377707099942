"""Client for several servers, which lets a callback select the server for each utterance."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Unpack

from numpy.typing import NDArray

from stretto_client import (
    ClientError,
    ModelProfile,
    RecordedVoice,
    ServerUnavailable,
    SpeakArguments,
    SpeechClient,
    SpeechEvent,
    SpeechOptions,
    TaskOptions,
    Timeouts,
    TranscriptionOptions,
)
from stretto_client.long_speech import Speech
from stretto_client.produced_speech import Items, ProducedSpeech
from stretto_client.tries import Tries, patiently
from stretto_client.voices import Audio

ATTEMPTS = 4  # maximum number of servers tried for an utterance before its first event
READY_S = 4.0  # shorter than the gateway's own READY_S

Begin = Callable[[SpeechClient], Speech]


@dataclass(frozen=True)
class Lease:
    """Server selected for one utterance; the future `lost` is done once the server is lost."""

    name: str
    server: str
    lost: "asyncio.Future[None]"


Choose = Callable[[str, tuple[str, ...]], AbstractAsyncContextManager[Lease]]
"""Function that leases a server for a conversation's key ('' for any), except servers with the given names.
It raises ServerUnavailable if there is none. The server counts as busier by one until the block ends."""


class RoutedClient:
    """Client with the SpeechClient methods that the gateway uses; `choose` selects the servers.

    If a server is unavailable, an utterance is retried on another server, unless some of its output has been received.
    In that case, the utterance raises ServerUnavailable.

    Args:
        caller: Function that identifies the caller of the current request, for servers on this host.

    Attributes:
        tries: Tries of the clauses of a long text after the first one, while the server is full.
    """

    def __init__(self, choose: Choose, caller: Callable[[], str] | None = None, timeouts: Timeouts | None = None):
        self._choose = choose
        self._caller = caller
        self._timeouts = timeouts
        self._clients: dict[str, SpeechClient] = {}
        self._profile: ModelProfile | None = None
        self.tries: Tries = patiently

    def speak(self, text: str | AsyncIterable[str], /, **options: Unpack[SpeakArguments]) -> Speech:
        """Speak a text as SpeechClient does. A streamed text is not moved to another server."""
        attempts = ATTEMPTS if isinstance(text, str) else 1
        return self._routed("", lambda client: client.speak(text, **options), attempts)

    def transcribe(self, audio: Audio, /, **options: Unpack[TranscriptionOptions]) -> Speech:
        """Transcribe a recording as SpeechClient does."""
        return self._routed("", lambda client: client.transcribe(audio, **options))

    def transcribe_live(
        self,
        pieces: AsyncIterable[NDArray[Any]],
        sample_rate: int,
        /,
        *,
        total_s: float | None = None,
        **options: Unpack[TranscriptionOptions],
    ) -> Speech:
        """Transcribe live audio as SpeechClient does, on a single server."""

        def begin(client: SpeechClient) -> Speech:
            return client.transcribe_live(pieces, sample_rate, total_s=total_s, **options)

        return self._routed("", begin, attempts=1)

    def talk(
        self,
        pieces: AsyncIterable[NDArray[Any]],
        sample_rate: int,
        /,
        *,
        system: str = "",
        voice: str | RecordedVoice | None = None,
        total_s: float | None = None,
        **options: Unpack[SpeechOptions],
    ) -> Speech:
        """Run a full-duplex session as SpeechClient does. It is not moved to another server."""

        def begin(client: SpeechClient) -> Speech:
            return client.talk(pieces, sample_rate, system=system, voice=voice, total_s=total_s, **options)

        return self._routed("", begin, attempts=1)

    def converse(
        self,
        messages: list[dict[str, Any]],
        /,
        *recordings: Audio,
        images: Sequence[bytes] = (),
        **options: Unpack[TaskOptions],
    ) -> Speech:
        """Send a conversation as SpeechClient does, and return the events of the reply.

        The turns of a conversation use the same server as long as it has capacity.
        """
        return self._routed(
            conversation_key(messages, *recordings),
            lambda client: client.converse(messages, *recordings, images=images, **options),
        )

    async def profile(self, refresh: bool = False) -> ModelProfile:
        """Return the model profile of one of the servers."""
        if self._profile is None or refresh:
            async with self._lent("") as (client, _):
                self._profile = await client.profile(refresh=True)
        return self._profile

    async def ready(self) -> bool:
        """Return True if any server accepts requests."""
        with suppress(ClientError, TimeoutError):
            async with asyncio.timeout(READY_S), self._lent("") as (client, _):
                return await client.ready()
        return False

    async def server_name(self) -> str:
        """Return the name of one of the servers, as SpeechClient does."""
        async with self._lent("") as (client, _):
            return await client.server_name()

    async def adapters(self, command: dict[str, str]) -> list[str]:
        """Return the names of the LoRA adapters of one of the servers, if the command lists them."""
        async with self._lent("") as (client, _):
            return await client.adapters(command)

    async def close(self) -> None:
        """Close the clients of all servers."""
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
                            has_begun = has_begun or has_output(event)
                return
            except ServerUnavailable as error:
                if len(refused) == num_refused:  # no other server is left
                    raise refusal or error from None
                if has_begun or len(refused) == attempts:
                    raise
                refusal = error

    @asynccontextmanager
    async def _lent(self, key: str, refused: tuple[str, ...] = ()) -> AsyncIterator[tuple[SpeechClient, Lease]]:
        async with self._choose(key, refused) as lease:
            if lease.server not in self._clients:
                self._clients[lease.server] = SpeechClient(lease.server, self._timeouts, caller=self._caller)
                self._clients[lease.server].tries = self.tries
            yield self._clients[lease.server], lease


def has_output(event: SpeechEvent) -> bool:
    """Return True if an event has samples, text, words or codes; events of speech that is held back have none."""
    return event.pcm is not None or event.codes is not None or bool(event.text or event.words)


@asynccontextmanager
async def _ended_with(lease: Lease, stream: Speech) -> AsyncIterator[None]:
    """Cancel a stream and raise ServerUnavailable as soon as its server is lost, instead of after a timeout."""

    def cancel(_: "asyncio.Future[None]") -> None:
        stream.cancel()

    lease.lost.add_done_callback(cancel)
    try:
        yield
    except ClientError:
        if not lease.lost.done() or lease.lost.cancelled():
            raise
        raise ServerUnavailable(f"{lease.server}: the server of this stream has ended; try again") from None
    finally:
        lease.lost.remove_done_callback(cancel)  # a server outlives its streams, which it would keep in memory


def conversation_key(messages: list[dict[str, Any]], *audio: Audio) -> str:
    """Return a digest of the turns up to the user's first turn, which is constant throughout a conversation."""
    first = next((n for n, turn in enumerate(messages) if turn.get("role") == "user"), len(messages))
    opening = messages[: first + 1]
    digest = hashlib.blake2b(json.dumps(opening, sort_keys=True).encode(), digest_size=16)
    spoken_turns = [turn for turn in opening if turn.get("audio") == "audio"]
    for content in audio[: len(spoken_turns)]:
        if isinstance(content, bytes):
            digest.update(hashlib.blake2b(content, digest_size=16).digest())
    return digest.hexdigest()
