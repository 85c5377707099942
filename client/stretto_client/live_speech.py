"""A text that is spoken while it is written: as it comes, or sentence by sentence where a model needs whole texts.

pieces ──► UnreadText ──► the first ones open the reply ──► events
                     └──► the others follow, part by part, each when the one before was taken
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

MAX_PART_CHARS = 4096  # as the server takes at once
STILL_THERE_S = 10.0  # how often a server that waits for words is told that somebody still writes
NOT_SPOKEN = "session.id: expected that of a text that is being spoken"  # how it refuses a part when the reply is over

Write = Callable[[str, int, str, bool], Awaitable[None]]
"""Sends a part of a text: the session, the part's number, what it adds, and whether it is the last."""


class Client(Protocol):
    """What speaks, and takes parts of texts."""

    timeouts: Timeouts

    async def profile(self) -> ModelProfile:
        """What the model is."""
        ...

    def speak_once(
        self, task: str, options: dict[str, Any], text: str, timeouts: Timeouts | None = None
    ) -> SpeechStream:
        """The events of one request."""
        ...

    def parts(self) -> PartStream:
        """Where the parts of a text go."""
        ...


async def speak_written(
    client: Client,
    task: str,
    options: dict[str, Any],
    pieces: AsyncIterable[str],
    items: Items,
    markup: Markup = "none",
) -> None:
    """Put the events of a text that is still being written into `items`, each as soon as the model can make it.

    Args:
        client: What speaks.
        task: What the model calls that.
        options: As the server knows them.
        pieces: The text, cut anywhere.
        items: Where the events go.
        markup: Marks of the text that are not to be read aloud. A break of SSML is silence if the model reads whole
            sentences, and ends a sentence if it reads word by word.
    """
    profile, limits = await profile_of(client), client.timeouts
    reader = None if markup == "none" or task != "tts" else open_reader(markup)
    if profile is not None and profile.reads_live_text and task == "tts" and options.get("text_mode", "open") == "open":
        # While the server waits for words nothing comes: how long that may last is the writer's affair.
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
    """What the model is; None where the server tells nothing of it, or what makes no sense."""
    try:
        return await client.profile()
    except ValueError:
        return None


async def speak_live(speak: Speak, write: Write, pieces: AsyncIterable[str], items: Items) -> None:
    """Put the events of one utterance into `items`, whose text is open and goes on with the `pieces`."""
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
                    if not str(error).startswith(NOT_SPOKEN):  # else its last events are on their way, or say why
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
    """Put the events of one utterance into `items`: of what is complete of the text, clause by clause.

    All samples of a clause leave before the next is there; so the end is an event of its own.
    reader: of the pieces, if they may hold a PAUSE.
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
    """Yield pieces of at most `max_chars` characters: sentences, each as soon as the next has begun; and each PAUSE."""
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
        if is_spoken(clause) or not has_paused:  # marks alone behind a pause are not worth a request
            yield clause
