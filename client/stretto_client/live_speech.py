"""Streamed text and live audio, sent in parts while they are being written or recorded.

Text is spoken part by part or sentence by sentence.
"""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from stretto_client.checked_speech import Judge, Lead, checked
from stretto_client.continued_speech import clause_chars, continued
from stretto_client.errors import (
    ClientError,
    RequestCancelled,
    RequestRefused,
    ServerUnavailable,
    Timeouts,
)
from stretto_client.joint import Joint
from stretto_client.long_speech import (
    events_of,
    first_sentences,
    in_voice,
    put_end,
    split,
    transliterated,
    with_phonemes,
)
from stretto_client.markup import Markup, MarkupReader, open_reader, read_pieces
from stretto_client.model_profile import ModelProfile
from stretto_client.part_stream import PartStream
from stretto_client.passages import Passages
from stretto_client.places import Places
from stretto_client.produced_speech import Items
from stretto_client.speech_stream import SpeakOptions, SpeechEvent, SpeechStream, with_seed
from stretto_client.ssml import VoiceChange
from stretto_client.tries import Speak, Tries
from stretto_client.unread import UnreadAudio, UnreadText
from stretto_client.voices import MarkedVoice, MarkedVoices
from stretto_contract.joins import Join
from stretto_contract.scripts import Transliteration
from stretto_contract.sentence_ends import PAUSE, is_spoken

NO_TEXT = "text: expected at least one character, got none"
MAX_PART_CHARS = 4096  # the server's limit
STILL_THERE_S = 10.0  # interval in seconds between empty parts, without which the server would end an idle text
# beginning of the server's error for a part after the reply has ended
NOT_SPOKEN = "session.id: expected the id of an open streamed text"

Write = Callable[[str, int, str, bool], Awaitable[None]]
"""Function that sends a part of a text: session, number of the part, text, and True for the last part."""


class Client(Protocol):
    """Subset of SpeechClient that this module uses."""

    timeouts: Timeouts
    tries: Tries

    async def profile(self) -> ModelProfile: ...

    def speak_once(
        self,
        task: str,
        options: SpeakOptions,
        text: str,
        timeouts: Timeouts | None = None,
        piece: int = 0,
        *,
        voice: MarkedVoice | None = None,
    ) -> SpeechStream: ...

    def parts(self) -> PartStream: ...


@dataclass(frozen=True, slots=True, eq=False)
class LiveText:
    """Streamed text, and the options for reading it.

    Attributes:
        markup: Markup of the text. An SSML break becomes silence if the model reads whole sentences, and ends a
            sentence if it reads word by word. There, phonemes and rates of SSML have no effect.
        rates: True if the caller applies changes of the speaking rate.
        join: `continued` if a clause continues the one before (`ContinuedSpeech`), if the model reads whole sentences.
        voices: Voices that marks in the text may select.
    """

    pieces: AsyncIterable[str]
    markup: Markup
    rates: bool
    join: Join
    voices: MarkedVoices


async def speak_written(
    client: Client,
    task: str,
    options: SpeakOptions,
    text: LiveText,
    items: Items,
    attempts: int = 0,
    hold_s: float = 0.0,
    judge: Judge | None = None,
) -> None:
    """Put the events of streamed text into `items`, as soon as the model can generate them.

    Args:
        attempts: Maximum number of attempts for a clause, if the model reads whole sentences; 0 not to measure them.
    """
    profile = await profile_of(client)
    places = Places()
    tags = None if profile is None else profile.tags
    if profile is not None and profile.reads_live_text and task == "tts" and options.get("text_mode", "open") == "open":
        reader = open_reader(text.markup, tags)
        pieces = read_pieces(followed(text.pieces, places.add), reader)
        receiver = PassageEvents(items, places, Joint(reader), Passages(pieces, reader))
        await speak_passages(client, task, {**options, "text_mode": "open"}, text.voices, receiver)
    elif profile is not None and task == "tts":
        options = with_seed(options)
        reader = open_reader(text.markup, tags, profile.phonemes, text.rates)
        pieces = read_pieces(followed(text.pieces, places.add), reader)
        transliteration = Transliteration() if "transliterate" in profile.options else None
        once = partial(client.speak_once, task)
        clause = checked(once, options, attempts, Lead(hold_s), client.tries, judge, client.profile)
        speak = partial(transliterated, continued(clause, text.join, client.profile, options), transliteration)
        joint = Joint(reader, transliteration, judge)
        async with UnreadText(pieces) as unread:
            clauses = clauses_of(unread, profile.max_text_chars, text.join)
            await speak_clauses(speak, client.tries, clauses, items, places, joint, reader, text.voices)
    else:
        whole = "".join([piece async for piece in text.pieces])
        async with client.speak_once(task, options, whole) as stream:
            async for event in stream:
                await items.put(event)


async def followed(pieces: AsyncIterable[str], follow: Callable[[str], None]) -> AsyncIterator[str]:
    """Yield `pieces`, and call `follow` with each one first."""
    try:
        async for piece in pieces:
            follow(piece)
            yield piece
    finally:
        if close := getattr(pieces, "aclose", None):
            await close()


async def profile_of(client: Client) -> ModelProfile | None:
    """Return the model profile; None if the server has no valid profile."""
    try:
        return await client.profile()
    except ValueError:
        return None


class EventReceiver(Protocol):
    """Receiver of events, such as a queue."""

    async def put(self, event: SpeechEvent, /) -> None: ...


class PassageEvents:
    """Receiver that joins the events of a streamed text's passages, and puts them into `items`.

    Attributes:
        seed: Seed of the last passage; None if it is unknown.
    """

    def __init__(self, items: Items, places: Places, joint: Joint, passages: Passages):
        self.passages = passages
        self.last: SpeechEvent | None = None
        self.seed: int | None = None
        self._items = items
        self._places = places
        self._joint = joint

    async def put(self, event: SpeechEvent) -> None:
        """Forward an event, and convert the positions of its words to those in the source of the text."""
        if any(word.text_start is not None for word in event.words):  # all words, with the last event of the passage
            event = self._places.find(self.passages.spoken).moved(event)
        if event.report is not None:
            self.seed = event.report.get("seed")
        self.last = self._joint.joined(event, is_last=not self.passages.is_at_change)
        await self._items.put(self.last)

    async def put_end(self) -> None:
        """Put a final event after the last passage, because no passage was known to be the last."""
        if self.last is None:
            raise RequestRefused(NO_TEXT)
        await put_end(self.last, self._joint, self._items)


async def speak_passages(
    client: Client, task: str, options: SpeakOptions, voices: MarkedVoices, receiver: PassageEvents
) -> None:
    """Speak the passages of a text, each sent part by part in a request with its voice.

    If a limit ends a passage, later ones are not spoken.
    """
    # The server sends nothing while it waits for text, for as long as the writer pauses.
    waits = replace(client.timeouts, between_s=client.timeouts.total_s)
    passages = receiver.passages
    async with passages:
        while (change := await passages.begin()) is not None:
            voice = await voices.choose(change.name)
            speak = partial(client.speak_once, task, options, timeouts=waits, voice=voice)
            async with client.parts() as parts:
                await speak_live(speak, parts.write, passages, receiver)
            if receiver.last is None or receiver.last.is_final:
                return
            if options.get("seed") is None and receiver.seed is not None:
                options = {**options, "seed": receiver.seed}
        await receiver.put_end()


async def speak_live(
    speak: Callable[[str], SpeechStream], write: Write, unread: UnreadText, items: EventReceiver
) -> None:
    """Put the events of one utterance, whose text is sent part by part, into `items`."""
    opening = await unread.pop(MAX_PART_CHARS)
    async with speak(opening) as stream:
        await _follow(stream, lambda session: _write_all(write, session, unread), NOT_SPOKEN, items)


async def _write_all(write: Write, session: str, unread: UnreadText) -> None:
    number = 0
    while True:
        text = await unread.pop(MAX_PART_CHARS, STILL_THERE_S)
        is_last = unread.is_complete
        await write(session, number, text, is_last)
        if is_last:
            return
        number += 1


async def speak_clauses(
    speak: Speak,
    tries: Tries,
    clauses: AsyncIterable[str],
    items: Items,
    places: Places,
    joint: Joint,
    reader: MarkupReader,
    voices: MarkedVoices,
) -> None:
    """Put the events of one utterance into `items`, clause by clause, as clauses become complete.

    A clause is spoken before it is known whether another one follows, so the end is a separate event.
    """
    last = None
    speak_clause = partial(with_phonemes, speak, reader)
    speak = speak_clause
    async for clause in clauses:
        if clause == PAUSE:
            change = reader.pauses.popleft() if reader.pauses else 0.0
            if isinstance(change, VoiceChange):
                speak = await in_voice(speak_clause, voices, change)
            else:
                joint.add(change)
            continue
        async with aclosing(events_of(speak, clause, places, tries, last is not None)) as events:
            async for event in events:
                for silence in joint.silences(event):
                    await items.put(silence)
                last = joint.joined(event, is_last=False)
                await items.put(last)
    if last is None:
        raise RequestRefused(NO_TEXT)
    await put_end(last, joint, items)


async def clauses_of(unread: UnreadText, max_chars: int, join: Join = "independent") -> AsyncIterator[str]:
    """Yield every PAUSE, and sentences in pieces of at most `clause_chars` characters.

    A piece is yielded once the next one has begun.
    """
    held = ""
    has_paused = False
    while not unread.is_complete:
        held += await unread.pop(max_chars)
        *ended, held = held.split(PAUSE)
        for piece in ended:
            for clause in filter(is_spoken, split(piece, clause_chars(piece, max_chars, join))):
                yield clause
            yield PAUSE
            has_paused = True
        if unread.is_complete:
            break
        complete, held = first_sentences(held, max_chars)
        for clause in split(complete, clause_chars(complete, max_chars, join)):
            yield clause
    for clause in split(held, clause_chars(held, max_chars, join)):
        if is_spoken(clause) or not has_paused:  # skip bare punctuation after a pause
            yield clause


NOT_OPEN = "session.id: expected the id of an open session"  # beginning of the error for a part after the end
# Beginning of the error for a session whose decoder was restarted: a failure of the server, not of the request.
WITHOUT_SPEECH = "session.resume: expected a session whose speech is still in the decoder"


RETRY_S = 0.2  # delay between attempts to resume a session
# WORKAROUND(triton server 2.51, fixed in 2.56): Triton keeps all responses of a request, 8 kB for a frame of speech.
# A session that can be resumed therefore continues with another request after MAX_BYTES.
MAX_BYTES = 8 << 20
EVENT_BYTES = 1 << 10  # size of an event without its samples
# beginnings of the server's errors for a part that it had accepted before the connection was lost
ACCEPTED = "session.part: expected {}, the number of the next part", "session: expected no further part"


class Renewal(Exception):
    """Raised if the session continues with another request."""


class LiveAudio:
    """Session of live audio on a server, over one or more connections.

    Args:
        resume: Function that continues a session, given its name and the number of events received, or ends the session
            if its third argument is True.
    """

    def __init__(
        self,
        begin: Callable[[], SpeechStream],
        resume: Callable[[str, int, bool], SpeechStream],
        parts: Callable[[], PartStream],
        unread: UnreadAudio,
        items: Items,
    ):
        self._begin = begin
        self._resume = resume
        self._parts = parts
        self._unread = unread
        self._items = items
        self._name = ""
        self._num_events = 0  # received after the event that contains the name
        self._num_bytes = 0  # bytes of the events of the current connection
        self._max_bytes = float("inf")
        self._is_gone = False  # the server no longer has the session
        self._number = 0  # of the next part
        self._is_complete = False  # True once the last part is acknowledged
        self._pending: tuple[NDArray[np.float32], bool] | None = None  # part that has not been acknowledged

    async def follow(self, resume_s: float = 0.0) -> None:
        """Put all events into the queue. If that fails or is cancelled, end a session that could be resumed.

        Args:
            resume_s: Time for which the server keeps the session after a lost connection, in seconds.
        """
        self._max_bytes = MAX_BYTES if resume_s else float("inf")
        try:
            async with self._unread:
                await self._follow_connections(resume_s)
        except BaseException:
            if resume_s and self._name and not self._is_gone:
                with suppress(ClientError):
                    async for _ in self._resume(self._name, 0, True):
                        pass
            raise

    async def _follow_connections(self, resume_s: float) -> None:
        """Put the events of all connections, one after the other, into the queue."""
        lost_s = float("inf")
        cause = None
        while True:
            self._num_bytes = 0
            try:
                async with self._parts() as parts, self._connect() as stream:
                    await _follow(stream, partial(self._write, parts), NOT_OPEN, self)
                return
            except Renewal:
                cause = None
            except (ServerUnavailable, RequestCancelled, RequestRefused) as error:
                now_s = asyncio.get_running_loop().time()
                if cause is None or self._num_bytes:
                    lost_s = now_s
                    cause = error
                self._is_gone = str(error).startswith(NOT_OPEN)
                if str(error).startswith(WITHOUT_SPEECH):
                    raise ServerUnavailable(str(error) if cause is error else f"{cause}; {error}") from None
                if isinstance(error, RequestRefused) and not self._is_gone:
                    raise
                if not (resume_s and self._name):
                    raise cause from None
                if self._is_gone or now_s - lost_s > resume_s:
                    late = f"; the session was not resumed within options.resume_s ({resume_s:g} s)"
                    raise type(cause)(f"{cause}{late}") from None
                await asyncio.sleep(RETRY_S)

    async def put(self, event: SpeechEvent) -> None:
        """Forward the connection's next event; forward the event with the session's name only once.

        Raises:
            Renewal: The session can be resumed, and this connection has received `MAX_BYTES` of events.
        """
        self._num_bytes += EVENT_BYTES + (0 if event.pcm is None else event.pcm.nbytes)
        is_first = not self._name
        self._name = self._name or event.session
        if not event.session:
            self._num_events += 1
        if is_first or not event.session:
            await self._items.put(replace(event, index=self._num_events))
        if self._num_bytes >= self._max_bytes and not event.is_final:
            raise Renewal

    def _connect(self) -> SpeechStream:
        return self._resume(self._name, self._num_events, False) if self._name else self._begin()

    async def _write(self, parts: PartStream, session: str) -> None:
        is_again = self._pending is not None
        while not self._is_complete:
            if self._pending is None:
                self._pending = await self._unread.pop()
            pcm, is_last = self._pending
            try:
                await parts.write_audio(session, self._number, (pcm, self._unread.sample_rate), is_last)
            except RequestRefused as error:
                accepted = tuple(template.format(self._number + 1) for template in ACCEPTED)
                if not (is_again and str(error).startswith(accepted)):
                    raise
            self._pending = None
            is_again = False
            self._is_complete = is_last
            self._number += 1


async def _follow(
    stream: SpeechStream, write: Callable[[str], Awaitable[None]], ended: str, items: EventReceiver
) -> None:
    """Put the events of `stream` into `items`, while `write` sends the parts of its session.

    Errors of `write` that begin with `ended` are ignored, because the stream reports the reason.
    """
    failures: list[Exception] = []

    async def write_all(session: str) -> None:
        try:
            await write(session)
        except Exception as error:
            if not str(error).startswith(ended):  # otherwise the stream itself ends, or raises the reason
                failures.append(error)
                stream.cancel()

    writing: asyncio.Task[None] | None = None
    try:
        async for event in stream:
            if event.session and writing is None:
                writing = asyncio.create_task(write_all(event.session))
            await items.put(event)
    except ClientError as error:
        raise failures[0] if failures else error from None
    finally:
        if writing is not None:
            writing.cancel()
