"""Speech for long texts. Clauses are requested one at a time and joined into a single utterance.

The language of a text is unknown: it may have several, and models that choose the language do not report it. So all
texts are divided by the rules of English, whose abbreviations do not end a sentence.
"""

import re
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing, nullcontext, suppress
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from sentencex import segment

from stretto_client.checked_speech import Judge
from stretto_client.continued_speech import clause_chars
from stretto_client.errors import RequestRefused
from stretto_client.joint import Joint
from stretto_client.markup import READING, Markup, MarkupReader, Parts, has_marks, open_reader, read_parts, ssml_reader
from stretto_client.model_profile import ModelProfile
from stretto_client.places import Places
from stretto_client.produced_speech import Items, ProducedSpeech
from stretto_client.speech_stream import SpeechEvent, SpeechStream
from stretto_client.ssml import MARKS, Change, VoiceChange
from stretto_client.tries import Events, Speak, Tries, events_in_turn, once, patiently
from stretto_client.voices import MarkedVoices
from stretto_contract.joins import Join
from stretto_contract.scripts import Transliteration, other_script

RULES = "en"  # language of the rules for the ends of sentences
# Where to cut an overlong sentence, from best to worst: after clause-ending punctuation and a space, after a comma or
# closing bracket and a space, at any space.
PLACES = (re.compile(r"(?<=[;:—…])\s+"), re.compile(r"(?<=[,)\]–])\s+"), re.compile(r"\s+"))
# Block size for sentence detection, which takes quadratic time if quotes never close. Where to end a block, from best
# to worst: at a paragraph, after punctuation that ends a sentence, at any space.
MAX_BLOCK_CHARS = 4000
BLOCK_ENDS = (re.compile(r"\n\s*\n"), re.compile(r"[.!?…]\s|[。！？]"), re.compile(r"\s"))
PARAGRAPH = "\n\n"  # before a piece that begins one
PARAGRAPH_PAUSE_S = 0.75  # as `<break/>`; added to the silence at the end of the clause's speech


def split(text: str, max_chars: int) -> list[str]:
    """Split a text into pieces, each with as many whole sentences as fit.

    Nothing is dropped except whitespace at the ends of pieces, and punctuation that belongs to no word and does not
    fit. Paragraphs in a piece are separated by PARAGRAPH.
    """
    return [piece.strip() for piece in _split(text, max_chars)]


def split_with_pauses(text: str, max_chars: int) -> Parts:
    """Split a text as `split` does, with a pause between two pieces if the second one begins a paragraph."""
    return [*pieces_with_pauses(text, max_chars)]


def pieces_with_pauses(text: str, max_chars: int) -> Iterator[str | float]:
    """Yield the pieces and pauses of `split_with_pauses`."""
    is_first = True
    for piece in _split(text, max_chars):
        if not is_first and piece.startswith(PARAGRAPH):
            yield PARAGRAPH_PAUSE_S
        yield piece.strip()
        is_first = False


def _split(text: str, max_chars: int) -> Iterator[str]:
    """Yield the pieces of a text; those that begin a paragraph begin with PARAGRAPH."""
    return _packed(_short(text, max_chars), max_chars)


def _short(text: str, max_chars: int) -> Iterator[str]:
    """Yield the sentences of a text, or the pieces of overlong ones, with PARAGRAPH as in `_split`."""
    for sentence, before in _sentences(text):
        for piece in _cut(sentence, max_chars, PLACES):
            yield before + piece
            before = ""


def _sentences(text: str) -> Iterator[tuple[str, str]]:
    """Yield the sentences of a text, each with PARAGRAPH if it begins one, or else an empty text."""
    num_line_ends = 0  # before the sentence
    for block in _blocks(text):
        for sentence in segment(RULES, block):
            spoken = sentence.strip()
            before, _, after = sentence.partition(spoken) if spoken else (sentence, "", "")
            num_line_ends += before.count("\n")
            if spoken:
                yield spoken, PARAGRAPH if num_line_ends > 1 else ""
                num_line_ends = after.count("\n")


def first_sentences(text: str, max_chars: int) -> tuple[str, str]:
    """Return the complete sentences of `text`, and the rest, which has at most `max_chars` characters.

    A sentence is complete when another one follows it. The first pieces of an overlong sentence count as complete.
    Nothing is dropped, not even whitespace.
    """
    sentences: list[str] = segment(RULES, text)
    tail = sentences[-1] if sentences else ""
    while len(tail) > max_chars:
        tail = tail[_first_end(tail, max_chars) :]
    return text[: len(text) - len(tail)], tail


def halve(text: str) -> list[str]:
    """Split `text` into two or three pieces of similar length, between sentences or clauses if possible."""
    return split(text, max(len(text) // 2 + len(text) % 2, 1))


def _blocks(text: str) -> Iterator[str]:
    """Yield `text` in blocks of at most MAX_BLOCK_CHARS characters."""
    start = 0
    while len(text) - start > MAX_BLOCK_CHARS:
        latest = start + MAX_BLOCK_CHARS
        ends = ([match.end() for match in pattern.finditer(text, start, latest)] for pattern in BLOCK_ENDS)
        end = next((positions[-1] for positions in ends if positions), latest)
        yield text[start:end]
        start = end
    yield text[start:]


def _first_end(text: str, max_chars: int) -> int:
    """Return the end of the first piece of an overlong sentence, including the space after it."""
    ends = ([match.end() for match in pattern.finditer(text, 0, max_chars + 1)] for pattern in PLACES)
    return next((positions[-1] for positions in ends if positions), max_chars)


def _cut(text: str, max_chars: int, places: Sequence[re.Pattern[str]]) -> Iterator[str]:
    """Yield pieces of a sentence, cut at the first of `places` that makes them short enough, or else within words."""
    if len(text) <= max_chars:
        yield text
    elif places:
        for piece in _packed((piece for piece in places[0].split(text) if piece), max_chars):
            yield from _cut(piece, max_chars, places[1:])
    else:
        yield from (text[start : start + max_chars] for start in range(0, len(text), max_chars))


def _packed(pieces: Iterable[str], max_chars: int) -> Iterator[str]:
    """Join pieces with spaces as long as they fit, and yield the results. Drop punctuation that does not fit."""
    held = ""
    for piece in pieces:
        joined = held + piece if piece.startswith(PARAGRAPH) or not held else f"{held} {piece}"
        if len(joined.lstrip()) <= max_chars:
            held = joined
        elif not held or any(map(str.isalnum, piece)):
            if held:
                yield held
            held = piece
    if held:
        yield held


MAX_WHOLE_BYTES = 48  # every family speaks a text of this length in one request if it has no digits
# The server's errors for a text that is too long after normalisation, with or without a recorded voice.
TOO_LONG = re.compile(r"(messages\[\d\]\.)?text: expected at most ")

Speech = SpeechStream | ProducedSpeech


class Piece(NamedTuple):
    """Text to speak, and the number of its piece if the model speaks it in several."""

    text: str
    number: int


async def in_voice(speak: Speak, voices: MarkedVoices, change: VoiceChange) -> Speak:
    """Return `speak` with the voice that a change selects."""
    voice = await voices.choose(change.name)
    return speak if voice is None else partial(speak, voice=voice)


def is_short(text: str) -> bool:
    """Return True if every family can speak the text in one request.

    A text with digits is never short, because a number may expand to many words.
    """
    return len(text.encode(errors="replace")) <= MAX_WHOLE_BYTES and not any(map(str.isdigit, text))


async def cut(
    text: str,
    profile: Callable[[], Awaitable[ModelProfile]],
    markup: Markup = "none",
    check: Speak | None = None,
    rates: bool = False,
    join: Join = "independent",
) -> "Clauses":
    """Split a text into pieces that the model accepts, and pauses between them in seconds.

    The text is a single piece if the model's limit is unknown.

    Args:
        check: Function that speaks a piece. If the model reads only Latin letters and most of the text is in another
            script, it is called with the first such piece, so that the server rejects the text before any of it is
            spoken. Its events are not used.
        rates: True to return changes of the speaking rate.
        join: `continued` for pieces of at most `clause_chars`.

    Raises:
        RequestRefused: The markup is invalid (see `read_text`), or the server rejects the piece passed to `check`.
    """
    max_chars = 0
    reads_latin_only = False
    tags = None
    alphabets = tuple[str, ...]()
    with suppress(ValueError):
        model = await profile()
        max_chars = clause_chars(text, model.max_text_chars, join)
        reads_latin_only = "transliterate" in model.options
        tags = model.tags
        alphabets = model.phonemes
    reader = open_reader(markup, tags, alphabets, rates)
    parts = await read_parts(text, reader) if has_marks(text, markup) else [text]
    pieces: Parts = []
    for fragment in parts:
        if not isinstance(fragment, str) or not max_chars or len(fragment) <= max_chars:
            pieces.append(fragment)
        elif len(fragment) <= MAX_BLOCK_CHARS:
            pieces += split_with_pauses(fragment, max_chars) or [fragment]
        else:  # run in the thread for long texts, because 100,000 characters may take 0.3 s
            pieces += await READING.run(split_with_pauses, fragment, max_chars) or [fragment]
    transliteration = await READING.run(Transliteration, text) if reads_latin_only else None
    if check is not None and transliteration is not None and transliteration.is_foreign:
        later = [piece for piece in pieces[1:] if isinstance(piece, str)]
        if (piece := await READING.run(first_in_other_script, later)) is not None:
            try:
                async with check(piece) as stream:
                    await anext(stream, None)
            except RequestRefused as refusal:  # a piece that is only too long will be halved
                if not is_too_long(piece, refusal):
                    raise
    return Clauses(pieces, Places(text), reader, transliteration)


class Clauses(NamedTuple):
    """Pieces of a text, and pauses in seconds and changes of rate and voice between them."""

    pieces: Parts
    places: Places
    reader: MarkupReader
    transliteration: Transliteration | None = None


def first_in_other_script(pieces: Iterable[str]) -> str | None:
    """Return the first piece that is mostly in another script than Latin; None if there is none."""
    return next(filter(other_script, pieces), None)


def transliterated(speak: Speak, transliteration: Transliteration | None, text: str, **options: Any) -> Events:
    """Speak a clause; request transliteration if it is mostly in other scripts, and the text so far mostly in Latin."""
    if transliteration is not None and transliteration.is_needed(text):
        return speak(text, **options, transliterates=True)
    return speak(text, **options)


def with_phonemes(speak: Speak, reader: MarkupReader, text: str, **options: Any) -> Events:
    """Speak a clause with the phonemes that SSML gives for its words."""
    ssml = ssml_reader(reader)
    marked = {} if ssml is None else {word: value for word, value in ssml.pronunciations.items() if word in text}
    if ssml is not None and ssml.pronunciations and not marked:
        text = text.translate(MARKS)  # a phrase that was cut is spoken without its phonemes
    return speak(text, **options, pronunciations=marked) if marked else speak(text, **options)


class LongSpeech(ProducedSpeech):
    """Stream that joins several texts into a single utterance, with the interface of SpeechStream.

    Pauses and changes of rate and voice may be between the texts (`Clauses`). A clause is requested once all events of
    the previous clause have been received, which is usually before they have been played. At most MAX_EVENTS_AHEAD
    events are received ahead of the reader.
    """

    def __init__(
        self,
        speak: Speak,
        texts: Callable[[], Awaitable[Clauses]],
        voices: MarkedVoices,
        tries: Tries = patiently,
        judge: Judge | None = None,
    ):
        super().__init__(judged_late(judge, partial(_speak_all, speak, texts, voices, tries, judge)))


def judged_late(judge: Judge | None, produce: Callable[[Items], Awaitable[None]]) -> Callable[[Items], Awaitable[None]]:
    """Return a function that speaks a text and judges each of its clauses while the next one is spoken."""

    async def produce_judged(items: Items) -> None:
        async with judge or nullcontext():
            await produce(items)

    return produce_judged


async def _speak_all(
    speak: Speak,
    texts: Callable[[], Awaitable[Clauses]],
    voices: MarkedVoices,
    tries: Tries,
    judge: Judge | None,
    items: Items,
) -> None:
    """Put the events of all texts, and of the silence between them, into `items`."""
    pieces, places, reader, transliteration = await texts()
    for change in pieces:  # a voice that the text may not use is refused before anything is spoken
        if isinstance(change, VoiceChange):
            await voices.choose(change.name)
    joint = Joint(reader, transliteration, judge)
    last = None
    speak_clause = partial(with_phonemes, partial(transliterated, speak, transliteration), reader)
    speak = speak_clause
    left = deque[Piece | Change](Piece(text, 0) if isinstance(text, str) else text for text in pieces)
    while left:
        item = left.popleft()
        if isinstance(item, VoiceChange):
            speak = await in_voice(speak_clause, voices, item)
            continue
        if not isinstance(item, Piece):
            joint.add(item)
            continue
        text, piece = item
        try:
            patience = once if last is None else tries
            async with aclosing(placed_events(speak, text, places, patience, piece)) as events:
                async for event in events:
                    if has_more(event, piece):
                        left.appendleft(Piece(text, piece + 1))
                    for silence in joint.silences(event):
                        await items.put(silence)
                    if event.is_final and not left:
                        await joint.finish()
                    last = joint.joined(event, is_last=not left)
                    await items.put(last)
        except RequestRefused as refusal:  # raised before any event of this text
            if not is_too_long(text, refusal):
                raise
            left.extendleft(Piece(half, 0) for half in reversed(halve(text)))
    if last is not None and not last.is_final:  # the text ends with a pause or a change
        await put_end(last, joint, items)


async def put_end(last: SpeechEvent, joint: Joint, items: Items) -> None:
    """Put pending silence and a final event into `items`; `last` is the utterance's last event so far."""
    await joint.finish()
    nothing = replace(last, pcm=None, text="", words=(), guidance_changes=(), codes=None, duration_s=0.0, is_final=True)
    end_s = last.start_s + last.duration_s
    for last in joint.silences(nothing):
        await items.put(last)
        end_s = last.start_s + last.duration_s
    await items.put(replace(nothing, index=last.index + 1, start_s=end_s, report=joint.report()))


def has_more(event: SpeechEvent, piece: int) -> bool:
    """Return True if `event` ends the speech of piece number `piece`, and the text has more pieces."""
    return event.report is not None and event.report.get("num_pieces", 1) > piece + 1


async def placed_events(
    speak: Speak, text: str, places: Places, tries: Tries, piece: int = 0
) -> AsyncGenerator[SpeechEvent, None]:
    """Yield the events of a text or a piece of it; positions of words are those in the source text."""
    placed = None
    has_begun = False
    begin = partial(speak, text, piece=piece) if piece else partial(speak, text)
    async with aclosing(events_in_turn(begin, tries)) as events:
        async for event in events:
            if not (has_begun or piece):  # the positions of the whole text were used up by the first piece
                placed = places.find(text)
            has_begun = True
            yield event if placed is None else placed.moved(event)


async def events_of(
    speak: Speak, text: str, places: Places, tries: Tries = once, has_begun: bool = True
) -> AsyncGenerator[SpeechEvent, None]:
    """Yield the events of all pieces of a text, halving the text each time the server rejects its length.

    `tries` does not apply to the first piece of an utterance that has not begun.
    """
    piece = 0
    goes_on = True
    try:
        while goes_on:
            goes_on = False
            patience = tries if has_begun or piece else once
            async with aclosing(placed_events(speak, text, places, patience, piece)) as events:
                async for event in events:
                    goes_on = has_more(event, piece)
                    yield event
            piece += 1
    except RequestRefused as refusal:
        if not is_too_long(text, refusal):
            raise
        for half in halve(text):
            async with aclosing(events_of(speak, half, places, tries)) as events:
                async for event in events:
                    yield event


def is_too_long(text: str, refusal: RequestRefused) -> bool:
    """Return True if the server rejected a text only because of its length, so that halves may be accepted."""
    return len(text.strip()) >= 2 and TOO_LONG.match(str(refusal)) is not None
