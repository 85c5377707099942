"""Speech for a text that is still being written: as it arrives, or by sentences for models that need whole texts.

pieces ──► UnreadText ──► the first ones open the request ──► events
                     └──► the others follow as parts, each after the one before was accepted
"""

import asyncio
import secrets
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from stretto_client.clauses import first_sentences, split
from stretto_client.errors import ClientError, RequestRefused
from stretto_client.joint import Joint
from stretto_client.long_speech import MAX_TRIES, Speak, events_of, put_end
from stretto_client.markup import PAUSE, Markup, MarkupReader, is_spoken, open_reader, read_pieces, without_pauses
from stretto_client.model_profile import ModelProfile
from stretto_client.part_stream import PartStream
from stretto_client.produced_speech import Items
from stretto_client.speech_stream import SpeechStream
from stretto_client.timeouts import Timeouts
from stretto_client.unread_text import UnreadText

MAX_PART_CHARS = 4096  # the server's limit
STILL_THERE_S = 10.0  # interval of empty parts, which keep an idle text alive on the server
# start of its refusal of a part after the reply has ended
NOT_SPOKEN = "session.id: expected that of a text that is being spoken"

Write = Callable[[str, int, str, bool], Awaitable[None]]
"""Sends a part of a text: the session, the part's number, what it adds, and whether it is the last."""


class Client(Protocol):
    """Client methods used in this module."""

    timeouts: Timeouts

    async def profile(self) -> ModelProfile:
        """Return the model profile."""
        ...

    def speak_once(
        self, task: str, options: dict[str, Any], text: str, timeouts: Timeouts | None = None
    ) -> SpeechStream:
        """Return the events of one request."""
        ...

    def parts(self) -> PartStream:
        """Return a stream for the parts of a text."""
        ...


async def speak_written(
    client: Client,
    task: str,
    options: dict[str, Any],
    pieces: AsyncIterable[str],
    items: Items,
    markup: Markup = "none",
) -> None:
    """Put the events of a text that is still being written into `items`, as soon as the model can generate them.

    Args:
        client: The client.
        task: The model's name of the task.
        options: Options of the server.
        pieces: The text, split anywhere.
        items: Queue for the events.
        markup: Markup that is not read aloud. A break of SSML is silence if the model reads whole sentences, and ends a
            sentence if it reads word by word.
    """
    profile, limits = await profile_of(client), client.timeouts
    reader = None if markup == "none" or task != "tts" else open_reader(markup)
    if profile is not None and profile.reads_live_text and task == "tts" and options.get("text_mode", "open") == "open":
        # While the server waits for text it sends nothing; only the writer decides how long.
        waits = replace(limits, between_s=limits.total_s)
        speak = partial(client.speak_once, task, options | {"text_mode": "open"}, timeouts=waits)
        if reader is not None:
            pieces = without_pauses(read_pieces(pieces, reader))
        async with client.parts() as parts:
            await speak_live(speak, parts.write, pieces, items)
    elif profile is not None and task == "tts":
        seed = options["seed"]
        options = options | {"seed": secrets.randbits(32) if seed is None else seed}
        if reader is not None:
            pieces = read_pieces(pieces, reader)
        speak = partial(client.speak_once, task, options)
        await speak_clauses(speak, pieces, profile.max_text_chars, items, reader)
    else:
        text = "".join([piece async for piece in pieces])
        async with client.speak_once(task, options, text) as stream:
            async for event in stream:
                await items.put(event)


async def profile_of(client: Client) -> ModelProfile | None:
    """Return the model profile; None if the server has none, or an invalid one."""
    try:
        return await client.profile()
    except ValueError:
        return None


async def speak_live(speak: Speak, write: Write, pieces: AsyncIterable[str], items: Items) -> None:
    """Put the events of one utterance into `items`; its text is open and continued with the `pieces`."""
    async with UnreadText(pieces) as unread:
        opening = await unread.take(MAX_PART_CHARS)
        if not opening:
            raise RequestRefused("text: expected at least one character, got none")
        failures: list[Exception] = []
        async with speak(opening) as stream:

            async def write_on(session: str) -> None:
                try:
                    await _write_all(write, session, unread)
                except Exception as error:
                    if not str(error).startswith(NOT_SPOKEN):  # otherwise the stream itself ends, or raises the reason
                        failures.append(error)
                        stream.cancel()

            writing: asyncio.Task[None] | None = None
            try:
                async for event in stream:
                    if event.session and writing is None:
                        writing = asyncio.create_task(write_on(event.session))
                    await items.put(event)
            except ClientError as error:
                raise failures[0] if failures else error from None
            finally:
                if writing is not None:
                    writing.cancel()


async def _write_all(write: Write, session: str, unread: UnreadText) -> None:
    part = 0
    while True:
        text = await unread.take(MAX_PART_CHARS, STILL_THERE_S)
        is_last = unread.is_complete
        await write(session, part, text, is_last)
        if is_last:
            return
        part += 1


async def speak_clauses(
    speak: Speak, pieces: AsyncIterable[str], max_chars: int, items: Items, reader: MarkupReader | None = None
) -> None:
    """Put the events of one utterance into `items`, clause by clause, as the text becomes complete.

    A clause is spoken before it is known if another one follows, so the end is a separate event.

    Args:
        speak: Speaks one clause.
        pieces: The text, split anywhere.
        max_chars: Limit of a clause.
        items: Queue for the events.
        reader: Reader of the pieces' markup, if they may contain PAUSE.
    """
    joint, last = Joint(), None
    async with UnreadText(pieces) as unread:
        async for clause in clauses_of(unread, max_chars):
            if clause == PAUSE:
                joint.pause(reader.pauses.popleft() if reader is not None and reader.pauses else 0.0)
                continue
            async with aclosing(events_of(speak, clause, 1 if last is None else MAX_TRIES)) as events:
                async for event in events:
                    for silence in joint.silences(event):
                        await items.put(silence)
                    last = joint.joined(event, is_last=False)
                    await items.put(last)
    if last is None:
        raise RequestRefused("text: expected at least one character, got none")
    await put_end(last, joint, items)


async def clauses_of(unread: UnreadText, max_chars: int) -> AsyncIterator[str]:
    """Yield sentences in pieces of at most `max_chars` characters, each once the next has begun, and each PAUSE."""
    held, has_paused = "", False
    while not unread.is_complete:
        held += await unread.take(max_chars)
        *ended, held = held.split(PAUSE)
        for part in ended:
            for clause in filter(is_spoken, split(part, max_chars)):
                yield clause
            yield PAUSE
            has_paused = True
        if unread.is_complete:
            break
        complete, held = first_sentences(held, max_chars)
        for clause in split(complete, max_chars):
            yield clause
    for clause in split(held, max_chars):
        if is_spoken(clause) or not has_paused:  # skip punctuation alone after a pause
            yield clause
