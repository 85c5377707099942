"""Cache of earlier speech in memory, from which equal requests are answered (`--speech-cache`).

An entry has the events of a reply before they are encoded, so it serves every format. Its key is a digest of the
served model, the caller's key, the text and all arguments of `SpeechClient.speak`.
"""

import asyncio
import hashlib
import json
import pickle
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge

from stretto_client import ClientError, RecordedVoice, SpeakArguments, SpeechClient, SpeechEvent
from stretto_client.markup import find_voices, may_change_voice
from stretto_client.voices import MarkedVoice
from stretto_contract.finish_reasons import STOP
from stretto_contract.limits import FairLimit
from stretto_gateway.admission import CALLER
from stretto_gateway.config import CacheSettings
from stretto_gateway.model_server import served_model
from stretto_gateway.routed import RoutedClient

SHARES = 8  # an entry takes at most this part of the cache, so that one long text does not replace all others
ENTRY_BYTES = 640  # memory of an entry without events, and of its key
EVENT_BYTES = 96  # memory of an event in addition to its pickled bytes
DIGESTS = {"configuration", "weights"}  # fields of `served_model` without which the model is not known


@dataclass(frozen=True, slots=True, eq=False)
class CachedRequest:
    """Request that may be answered from the cache, and the model that was served when the request arrived."""

    key: bytes
    owner: str
    client: SpeechClient | RoutedClient
    model: dict[str, str]


@dataclass(slots=True, eq=False)
class Entry:
    """Events of a reply. They are pickled, so that their memory is known exactly.

    Attributes:
        num_users: Number of responses that write or read it, plus one while requests can find it.
    """

    key: bytes
    owner: str
    stored_s: float
    events: list[bytes] = field(default_factory=list)
    num_bytes: int = 0
    num_users: int = 1


class SpeechCache:
    """Entries of the cache, at most `CacheSettings.max_bytes` bytes together, including those being written or read.

    Keys share the bytes fairly (`FairLimit`), so that one does not replace the entries of all others. To make space,
    the least recently used entries are removed: those of the key that has most bytes, or else of the same key.

    Args:
        has_keys: True if each caller has only the entries of its own key.
    """

    def __init__(
        self,
        settings: CacheSettings,
        has_keys: bool,
        registry: CollectorRegistry,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._settings = settings
        self._has_keys = has_keys
        self._clock = clock
        self._entries: dict[bytes, Entry] = {}
        # Keys of the entries that no response uses, by owner; the oldest use is the first.
        self._unused: dict[str, OrderedDict[bytes, None]] = {}
        self._checks = dict[asyncio.Task[dict[str, str]], bytes]()  # key by the check of a complete reply
        self._shares = FairLimit(settings.max_bytes)
        self._hits = Counter("gateway_cache_hits", "Speech sent from the cache", registry=registry)
        self._misses = Counter("gateway_cache_misses", "Speech that the cache did not have", registry=registry)
        self._evictions = Counter("gateway_cache_evictions", "Entries removed for space or age", registry=registry)
        size = Gauge("gateway_cache_bytes", "Bytes of the cache in use", registry=registry)
        size.set_function(lambda: self._shares.held)

    async def request(
        self, client: SpeechClient | RoutedClient, wanted: bool | None, text: str, options: SpeakArguments
    ) -> CachedRequest | None:
        """Return a request of the current caller; None if it does not use the cache.

        Args:
            wanted: True to use the cache also without a seed and in the voice of a recording, False not to use it, None
                to follow the settings.
        """
        is_random = options.get("seed") is None and "seedless" not in self._settings.also
        has_adapter = "adapter" in options  # its weights are not in the digests of the model
        if wanted is False or (wanted is None and is_random) or has_adapter:
            return None
        try:
            voices = await self._voices(client, text, options)
        except ClientError:  # the client refuses the text, or the server is lost
            return None
        has_recording = any(isinstance(voice, RecordedVoice) for voice in voices.values())
        if wanted is None and has_recording and "voices" not in self._settings.also:
            return None
        model = await served_model(client)
        if not model.keys() >= DIGESTS:
            return None
        record: dict[str, Any] = {**options, "voice": None}
        record["voices"] = {name: voice_record(voice) for name, voice in voices.items()}
        owner = CALLER.get() if self._has_keys else ""
        parts = json.dumps([model, owner, text, record], sort_keys=True)
        key = hashlib.sha256(parts.encode()).digest()
        checks = [check for check, checked in self._checks.items() if checked == key]
        if checks:  # an equal reply has just been stored
            await asyncio.wait(checks)
        return CachedRequest(key, owner, client, model)

    async def _voices(
        self, client: SpeechClient | RoutedClient, text: str, options: SpeakArguments
    ) -> dict[str, str | RecordedVoice | None]:
        """Return the voices of a text by name: the request's voice (an empty name), and voices that marks select."""
        marked = list[MarkedVoice]()
        markup = options.get("markup", "none")
        if (voices := options.get("voices")) is not None and may_change_voice(text, markup):
            profile = await client.profile()
            marked = await voices.choose_all(await find_voices(text, markup, profile.tags))
        return {"": options.get("voice")} | dict(marked)

    @contextmanager
    def reading(self, request: CachedRequest) -> Iterator[Entry | None]:
        """Yield the entry of a request, which keeps its memory during the `with` block; None if there is none."""
        entry = self._entries.get(request.key)
        if entry is not None and self.age_s(entry) > self._settings.max_age_s:
            self._evict(request.key)
            entry = None
        if entry is None:
            self._misses.inc()
            yield None
            return
        self._hits.inc()
        self._use(entry)
        try:
            yield entry
        finally:
            self._leave(entry)

    def age_s(self, entry: Entry) -> float:
        """Return the time since an entry was stored, in seconds."""
        return self._clock() - entry.stored_s

    async def replay(self, entry: Entry) -> AsyncGenerator[SpeechEvent, None]:
        """Yield the events of an entry."""
        for data in entry.events:
            event: SpeechEvent = pickle.loads(data)  # written by `record` in this process
            yield event
            await asyncio.sleep(0)  # other responses take turns

    async def record(
        self, request: CachedRequest, events: AsyncIterator[SpeechEvent]
    ) -> AsyncGenerator[SpeechEvent, None]:
        """Yield the events of a reply, and store them if it is complete and without faults."""
        entry = Entry(request.key, request.owner, self._clock())
        try:
            fits = self._grow(entry, ENTRY_BYTES)
            report: dict[str, Any] | None = None
            async for event in events:
                if fits:
                    fits = self._add(entry, event)
                report = event.report
                yield event
            if fits and is_good(report):
                entry.num_users += 1
                checking = asyncio.create_task(served_model(request.client))  # the response does not wait for the check
                self._checks[checking] = request.key
                checking.add_done_callback(partial(self._end_check, request, entry))
        finally:
            self._leave(entry)

    def _end_check(self, request: CachedRequest, entry: Entry, checking: asyncio.Task[dict[str, str]]) -> None:
        """Store a complete reply if the server still has the same model."""
        del self._checks[checking]
        if not checking.cancelled() and checking.result() == request.model:
            self._put(entry)
        self._leave(entry)

    def _add(self, entry: Entry, event: SpeechEvent) -> bool:
        """Add an event to an entry; if there is no space for it, empty the entry and return False."""
        data = pickle.dumps(event, pickle.HIGHEST_PROTOCOL)
        if not self._grow(entry, len(data) + EVENT_BYTES):
            self._shares.release(entry.owner, entry.num_bytes)
            entry.num_bytes = 0
            entry.events.clear()
            return False
        entry.events.append(data)
        return True

    def _grow(self, entry: Entry, num_bytes: int) -> bool:
        """Make space for `num_bytes` more bytes of an entry; return False if there is none."""
        if entry.num_bytes + num_bytes > self._settings.max_bytes // SHARES:
            return False
        while not self._has_space(entry.owner, num_bytes):
            key = self._replaceable(entry.owner, num_bytes)
            if key is None:
                return False
            self._evict(key)
        self._shares.acquire(entry.owner, num_bytes)
        entry.num_bytes += num_bytes
        return True

    def _has_space(self, owner: str, num_bytes: int) -> bool:
        if self._has_keys:
            return self._shares.has_free(owner, num_bytes)
        return self._shares.held + num_bytes <= self._settings.max_bytes

    def _replaceable(self, owner: str, num_bytes: int) -> bytes | None:
        """Return the key of the next entry to remove so that an owner may take `num_bytes` more; None if none is left.

        The entry belongs to the owner with most bytes, or to this owner if it would then have at least as many.
        """
        most = max(self._unused, key=self._shares.held_by, default=owner)
        if self._shares.held_by(most) <= self._shares.held_by(owner) + num_bytes:
            most = owner
        return next(iter(self._unused.get(most, ())), None)

    def _put(self, entry: Entry) -> None:
        if entry.key in self._entries:
            self._remove(entry.key)
        entry.stored_s = self._clock()
        entry.num_users += 1
        self._entries[entry.key] = entry

    def _evict(self, key: bytes) -> None:
        self._evictions.inc()
        self._remove(key)

    def _remove(self, key: bytes) -> None:
        entry = self._entries.pop(key)
        self._note_use(entry)
        self._leave(entry)

    def _use(self, entry: Entry) -> None:
        entry.num_users += 1
        self._note_use(entry)

    def _note_use(self, entry: Entry) -> None:
        unused = self._unused.get(entry.owner)
        if unused is not None:
            unused.pop(entry.key, None)
            if not unused:
                del self._unused[entry.owner]

    def _leave(self, entry: Entry) -> None:
        """End a use of an entry; the last use frees its memory."""
        entry.num_users -= 1
        if not entry.num_users:
            self._shares.release(entry.owner, entry.num_bytes)
        elif entry.num_users == 1 and self._entries.get(entry.key) is entry:
            self._unused.setdefault(entry.owner, OrderedDict())[entry.key] = None


def voice_record(voice: str | RecordedVoice | None) -> str | dict[str, str] | None:
    """Return the form of a voice in the key of an entry: a recording is replaced by its digest."""
    if not isinstance(voice, RecordedVoice):
        return voice
    assert isinstance(voice.audio, bytes)
    return {"audio": hashlib.sha256(voice.audio).hexdigest(), "text": voice.text}


def is_good(report: dict[str, Any] | None) -> bool:
    """Return True if a report describes a complete reply that the model ended, without faults and unchecked clauses."""
    return (
        report is not None
        and report.get("finish_reason") == STOP
        and not (report.get("faults") or report.get("unchecked"))
    )
