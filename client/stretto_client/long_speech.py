"""Text of any length as one utterance: its clauses are requested one after another, ahead of playback."""

import asyncio
import re
import unicodedata
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import replace

from stretto_client.clauses import halve, split
from stretto_client.errors import RequestRefused, ServerFull
from stretto_client.event import SpeechEvent
from stretto_client.joint import Joint
from stretto_client.markup import Markup, read_text
from stretto_client.model_profile import ModelProfile
from stretto_client.produced_speech import Items, ProducedSpeech
from stretto_client.speech_stream import SpeechStream

MAX_WHOLE_CHARS = 80  # every family takes a text of this length in one piece, if it has no digits
# The server's refusal of a text that is too long when expanded, with or without a recorded voice.
TOO_LONG = re.compile(r"(messages\[1\]\.)?text: expected at most ")
LONE_GREEK = re.compile(r"(?<![Ͱ-Ͽἀ-῿])[Α-ω](?![Ͱ-Ͽἀ-῿])")  # a symbol, as in "π" or "Δt"

Speak = Callable[[str], SpeechStream]

ROOM_S, MAX_TRIES = 0.25, 240  # retries of a clause while the server is full: one minute in total


def is_short(text: str) -> bool:
    """Return True if every family takes the text in one piece. Digits count as long: a number may become many words."""
    return len(text) <= MAX_WHOLE_CHARS and not any(map(str.isdigit, text))


async def cut(
    text: str,
    profile: Callable[[], Awaitable[ModelProfile]],
    markup: Markup = "none",
    check: Speak | None = None,
) -> list[str | float]:
    """Return the pieces in which the model takes `text`, and seconds of silence between them.

    The text is a single piece if the model's limit is unknown.

    Args:
        text: Text of any length.
        profile: Returns the model profile.
        markup: Markup of the text.
        check: Speaks a piece. If the model reads Latin letters only, it is called with the first piece that has others,
            so that the server refuses the text before any of it is spoken; its events are not used.

    Raises:
        RequestRefused: As `read_text`, for a text with `markup`; or the server refuses the piece given to `check`.
    """
    parts: list[str | float] = [text]
    if markup != "none":
        parts = await read_text(text, markup)
    max_chars, reads_latin_only = 0, False
    with suppress(ValueError):
        known = await profile()
        max_chars, reads_latin_only = known.max_text_chars, "transliterate" in known.options
    pieces = list[str | float]()
    for part in parts:
        if isinstance(part, float) or not max_chars or len(part) <= max_chars:
            pieces.append(part)
        else:
            pieces += split(part, max_chars) or [part]
    if check is not None and reads_latin_only:
        later = (piece for piece in pieces[1:] if isinstance(piece, str))
        if (piece := next(filter(has_other_letters, later), None)) is not None:
            try:
                async with check(piece) as stream:
                    await anext(stream, None)
            except RequestRefused as refusal:  # a piece that is only too long is halved later
                if not is_too_long(piece, refusal):
                    raise
    return pieces


def has_other_letters(text: str) -> bool:
    """Return True if `text` has letters that are not Latin. A Greek letter alone is a symbol, and does not count."""
    if text.isascii():
        return False
    letters = filter(str.isalpha, LONE_GREEK.sub("", unicodedata.normalize("NFKC", text)))
    return any(unicodedata.name(letter, "").partition(" ")[0] not in ("LATIN", "MODIFIER") for letter in letters)


class LongSpeech(ProducedSpeech):
    """Events of several texts as those of one utterance, with the interface of SpeechStream.

    A number among the texts is a pause in seconds. The next clause is requested when the one before has been received,
    usually while that is playing, and at most MAX_EVENTS_AHEAD events ahead of the reader.
    """

    def __init__(self, speak: Speak, texts: Callable[[], Awaitable[list[str | float]]]):
        super().__init__(lambda items: _speak_all(speak, texts, items))


Speech = SpeechStream | ProducedSpeech


async def _speak_all(speak: Speak, texts: Callable[[], Awaitable[list[str | float]]], items: Items) -> None:
    """Put the events of all texts, and of the silence between them, into `items`."""
    joint, left, last = Joint(), deque(await texts()), None
    while left:
        text = left.popleft()
        if not isinstance(text, str):
            joint.pause(text)
            continue
        try:
            async with aclosing(events_in_turn(speak, text, 1 if last is None else MAX_TRIES)) as events:
                async for event in events:
                    for silence in joint.silences(event):
                        await items.put(silence)
                    last = joint.joined(event, is_last=not left)
                    await items.put(last)
        except RequestRefused as refusal:  # raised before any event of this text
            if not is_too_long(text, refusal):
                raise
            left.extendleft(reversed(halve(text)))
    if last is not None and not last.is_final:  # the text ends with a pause
        await put_end(last, joint, items)


async def put_end(last: SpeechEvent, joint: Joint, items: Items) -> None:
    """Put the end of the whole into `items` after its `last` event: pending silence, and a final event."""
    nothing = replace(last, pcm=None, text="", words=(), guidance_changes=(), codes=None, duration_s=0.0, is_final=True)
    end_s = last.start_s + last.duration_s
    for last in joint.silences(nothing):
        await items.put(last)
        end_s = last.start_s + last.duration_s
    await items.put(replace(nothing, index=last.index + 1, start_s=end_s, report=joint.report))


async def events_in_turn(speak: Speak, text: str, tries: int) -> AsyncGenerator[SpeechEvent, None]:
    """Yield the events of one text; retry while the server is full, up to `tries` attempts.

    So a long text that has been started is not cut off because other requests have arrived.
    """
    while True:
        has_begun, tries = False, tries - 1
        try:
            async with speak(text) as stream:
                async for event in stream:
                    has_begun = True
                    yield event
            return
        except ServerFull:
            if has_begun or tries <= 0:
                raise
        await asyncio.sleep(ROOM_S)


async def events_of(speak: Speak, text: str, tries: int = 1) -> AsyncGenerator[SpeechEvent, None]:
    """Yield the events of one text, halved as often as the server refuses its length.

    `tries` as in `events_in_turn`.
    """
    try:
        async with aclosing(events_in_turn(speak, text, tries)) as events:
            async for event in events:
                yield event
    except RequestRefused as refusal:
        if not is_too_long(text, refusal):
            raise
        for half in halve(text):
            async with aclosing(events_of(speak, half, tries)) as events:
                async for event in events:
                    yield event


def is_too_long(text: str, refusal: RequestRefused) -> bool:
    """Return True if the server has refused a text only because of its length, so that halves may be accepted."""
    return len(text.strip()) >= 2 and TOO_LONG.match(str(refusal)) is not None
