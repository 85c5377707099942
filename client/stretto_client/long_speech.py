"""Speech for long texts. Clauses are requested one at a time and joined into a single utterance.

Texts in all languages are divided by the rules of English: its abbreviations do not end a sentence. A text may have
several languages, and the models that choose the language themselves do not report it.
"""

import re
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing, nullcontext, suppress
from dataclasses import replace
from functools import partial, reduce
from itertools import starmap
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sentencex import segment

from stretto_client.checked_speech import Judge
from stretto_client.continued_speech import clause_chars
from stretto_client.errors import RequestRefused
from stretto_client.markup import READING, Markup, MarkupReader, Parts, has_marks, open_reader, read_parts, ssml_reader
from stretto_client.model_profile import ModelProfile
from stretto_client.places import Places
from stretto_client.produced_speech import Items, ProducedSpeech
from stretto_client.speech_stream import GuidanceChange, SpeechEvent, SpeechStream
from stretto_client.ssml import MARKS, RateChange
from stretto_client.tries import Events, Speak, Tries, events_in_turn, once, patiently
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
    """Yield the sentences of a text, or pieces of them; those that begin a paragraph begin with PARAGRAPH."""
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
    """Yield pieces of a sentence.

    The sentence is cut at the first pattern in `places` that makes the pieces short enough, otherwise within a word.
    """
    if len(text) <= max_chars:
        yield text
    elif places:
        for piece in _packed((piece for piece in places[0].split(text) if piece), max_chars):
            yield from _cut(piece, max_chars, places[1:])
    else:
        yield from (text[start : start + max_chars] for start in range(0, len(text), max_chars))


def _packed(pieces: Iterable[str], max_chars: int) -> Iterator[str]:
    """Join pieces with spaces as long as they fit, and yield the results.

    Punctuation that does not fit is dropped.
    """
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


FADE_S = 0.005
MAX_SILENCE_S = 1.0  # longest silence in one event
SUMS = (
    *("num_prompt_rows", "num_text_tokens", "num_frames", "guided_frames", "total_s", "audio_s", "decode_s"),
    *("redrawn", "redrawn_s"),
)
LISTS = ("untimed_words", "faults", "unchecked", "transcripts")  # a report without one has nothing to list


class Joint:
    """Converter that turns the events of successive utterances into the events of a single utterance.

    Samples follow one another without a gap, except for pauses. A step between utterances would be an audible click.
    Therefore, each utterance starts at the last sample value of the previous one, and fades to its own samples within
    FADE_S seconds.

    Args:
        reader: Reader of the text; None if its events are only joined.
        transliteration: Words of other scripts; None if the model reads other scripts, too.
        judge: Judge of the utterances, which may complete their reports late; None for none.
    """

    def __init__(
        self,
        reader: MarkupReader | None = None,
        transliteration: Transliteration | None = None,
        judge: Judge | None = None,
    ) -> None:
        self._reader = reader
        self._transliteration = transliteration
        self._judge = judge
        self._num_events = 0
        self._utterance = ""
        self._before_s = 0.0  # duration of the earlier utterances
        self._audio_s = 0.0  # received duration of the current utterance
        self._last_sample = 0.0
        self._pause_s = 0.0  # pending silence
        self._form: NDArray[Any] | None = None  # empty array with the samples' dtype
        self._begins = False  # True after the end of an utterance, until the next one has samples
        self._wants_space = False  # separates the texts of two utterances
        self._reports = list[tuple[dict[str, Any], float]]()  # of the utterances, and where these begin in seconds
        self.rate = 1.0

    def add(self, change: float | RateChange) -> None:
        """Insert silence (a number of seconds) before the next utterance, or change the rate."""
        if isinstance(change, RateChange):
            self.rate = change.value
        else:
            self._pause_s += change
            self._before_s += change

    def silences(self, event: SpeechEvent) -> Iterator[SpeechEvent]:
        """Yield the pending silence as events to send before `event`, which may be the final event."""
        if event.pcm is not None and len(event.pcm):
            self._form = event.pcm[:0]
        elif not event.is_final:
            return  # the dtype of the samples is still unknown
        if self._form is None:
            return
        while num_samples := round(min(self._pause_s, MAX_SILENCE_S) * event.sample_rate):
            length_s = num_samples / event.sample_rate
            bare = replace(event, text="", words=(), guidance_changes=(), codes=None, report=None, is_final=False)
            yield replace(
                bare,
                pcm=self._smooth(replace(bare, pcm=np.zeros(num_samples, self._form.dtype)), is_counted=False),
                utterance=self._utterance or event.utterance,
                index=self._num_events,
                start_s=self._before_s - self._pause_s,
                duration_s=length_s,
            )
            self._num_events += 1
            self._pause_s = max(0.0, self._pause_s - length_s)
            self._begins = True

    def joined(self, event: SpeechEvent, is_last: bool) -> SpeechEvent:
        """Return `event` as an event of the joined utterance.

        `is_last` is True if the event belongs to the last utterance.
        """
        self._utterance = self._utterance or event.utterance
        joined = replace(
            event,
            pcm=None if event.pcm is None else self._smooth(event),
            utterance=self._utterance,
            index=self._num_events,
            text=self._spaced(event.text),
            words=tuple(word.shifted(self._before_s) for word in event.words),
            guidance_changes=tuple(
                GuidanceChange(change.start_s + self._before_s, change.is_guided) for change in event.guidance_changes
            ),
            start_s=event.start_s + self._before_s,
            is_final=event.is_final and is_last,
            speed=self.rate,
        )
        self._num_events += 1
        return self._ended(joined, is_last) if event.is_final else joined

    def _smooth(self, event: SpeechEvent, is_counted: bool = True) -> NDArray[Any]:
        """Return the samples of `event`, smoothed to follow the previous samples.

        `is_counted` is False for silence.
        """
        assert event.pcm is not None
        pcm = event.pcm
        if not len(pcm):
            return pcm
        if self._begins:
            self._begins = False
            pcm = from_value(pcm, self._last_sample, round(FADE_S * event.sample_rate))
        self._last_sample = float(pcm[-1])
        if is_counted:
            self._audio_s += len(pcm) / event.sample_rate
        return pcm

    def _spaced(self, text: str) -> str:
        if text and self._wants_space:
            self._wants_space = False
            return f" {text}"
        return text

    def _ended(self, event: SpeechEvent, is_last: bool) -> SpeechEvent:
        """Return the last event of a joined utterance, with the combined report if it is the last one."""
        if event.report is not None:
            self._reports.append((event.report, self._before_s))
        self._before_s += self._audio_s
        self._audio_s = 0.0
        self._begins = self._wants_space = True
        return replace(event, report=self.report() if is_last else None)

    async def finish(self) -> None:
        """Wait until the reports are complete, before the last event."""
        if self._judge is not None:
            await self._judge.finish()

    def report(self) -> dict[str, Any] | None:
        """Return the combined report; None if no utterance has one."""
        if not self._reports:
            return None
        report = with_left_out(reduce(add_reports, starmap(with_later_faults, self._reports)), self._reader)
        if self._transliteration is not None and self._transliteration.words:
            report = report | {"transliterated": self._transliteration.words}
        return report


def from_value(pcm: NDArray[Any], value: float, num_samples: int) -> NDArray[Any]:
    """Return samples [n] that start at `value` and fade to `pcm` [n] within `num_samples` samples."""
    fade = np.cos(np.linspace(0, np.pi / 2, num_samples, endpoint=False)[: len(pcm)]) ** 2
    begin = pcm[: len(fade)] + (value - float(pcm[0])) * fade
    if np.issubdtype(pcm.dtype, np.integer):
        limits = np.iinfo(pcm.dtype)
        begin = begin.round().clip(limits.min, limits.max)
    return np.concatenate([begin.astype(pcm.dtype), pcm[len(fade) :]])


def with_left_out(report: dict[str, Any], reader: MarkupReader | None) -> dict[str, Any]:
    """Return a report with the tags and elements that a reader of markup has left out, if any, as `left_out`."""
    ssml = ssml_reader(reader)
    left_out = [*([] if reader is None else reader.left_out), *([] if ssml is None else ssml.without_effect)]
    if "untimed_words" in report:
        report = report | {"untimed_words": [word.translate(MARKS) for word in report["untimed_words"]]}
    return report | {"left_out": left_out} if left_out else report


def with_later_faults(report: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Return a report whose faults begin later by a number of seconds."""
    if not report.get("faults"):
        return report
    return report | {"faults": [fault | {"start_s": fault["start_s"] + seconds} for fault in report["faults"]]}


def add_reports(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Combine the reports of two successive utterances.

    Counts and lists of words are added. `finish_reason` comes from the first utterance that was cut off, and
    `first_sound_s` from the first audible one. `aligned` is true if it is true for both. All other values come from the
    first utterance.
    """
    before_s = first.get("audio_s", 0.0)
    added = {key: first[key] + second[key] for key in SUMS if key in first and key in second}
    lists = {key: [*first.get(key, []), *second.get(key, [])] for key in LISTS if key in first or key in second}
    reasons = {"finish_reason": second["finish_reason"]} if first.get("finish_reason") == "stop" else {}
    sound: dict[str, Any] = {}
    if first.get("first_sound_s") is None and second.get("first_sound_s") is not None:
        sound = {"first_sound_s": before_s + second["first_sound_s"]}
    frames = first.get("num_frames", 0)
    changes = [(frame + frames, guided) for frame, guided in second.get("guidance_changes", [])]
    moved = {"guidance_changes": [*first.get("guidance_changes", []), *changes]} if changes else {}
    both = [report["aligned"] for report in (first, second) if "aligned" in report]
    aligned = {"aligned": all(both)} if both else {}
    return first | added | lists | reasons | sound | moved | aligned


MAX_WHOLE_BYTES = 48  # every family speaks a text of this length in one request if it has no digits
# The server's errors for a text that is too long after normalisation, with or without a recorded voice.
TOO_LONG = re.compile(r"(messages\[\d\]\.)?text: expected at most ")

Speech = SpeechStream | ProducedSpeech


def is_short(text: str) -> bool:
    """Return True if every family speaks the text in one request.

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
        else:  # in the thread for long texts, because 100,000 characters may take 0.3 s
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
    """Pieces of a text, and pauses in seconds and changes of the rate between them.

    Attributes:
        transliteration: Words of other scripts; None if the model reads other scripts, too.
    """

    pieces: Parts
    places: Places
    reader: MarkupReader
    transliteration: Transliteration | None = None


def first_in_other_script(pieces: Iterable[str]) -> str | None:
    """Return the first piece that is mostly in another script than Latin; None if there is none."""
    return next(filter(other_script, pieces), None)


def transliterated(speak: Speak, transliteration: Transliteration | None, text: str, **options: Any) -> Events:
    """Speak a clause whose letters of other scripts are transliterated if the whole text is mostly Latin."""
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

    A number among the texts is a pause in seconds. A clause is requested once all events of the previous clause have
    been received, which is usually before they have been played. At most MAX_EVENTS_AHEAD events are received ahead of
    the reader.
    """

    def __init__(
        self,
        speak: Speak,
        texts: Callable[[], Awaitable[Clauses]],
        tries: Tries = patiently,
        judge: Judge | None = None,
    ):
        super().__init__(judged_late(judge, partial(_speak_all, speak, texts, tries, judge)))


def judged_late(judge: Judge | None, produce: Callable[[Items], Awaitable[None]]) -> Callable[[Items], Awaitable[None]]:
    """Return a function that speaks a text, whose clauses are judged while the next ones are spoken."""

    async def produce_judged(items: Items) -> None:
        async with judge or nullcontext():
            await produce(items)

    return produce_judged


async def _speak_all(
    speak: Speak, texts: Callable[[], Awaitable[Clauses]], tries: Tries, judge: Judge | None, items: Items
) -> None:
    """Put the events of all texts, and of the silence between them, into `items`."""
    pieces, places, reader, transliteration = await texts()
    joint = Joint(reader, transliteration, judge)
    last = None
    speak = partial(with_phonemes, partial(transliterated, speak, transliteration), reader)
    left = deque[tuple[str, int] | float | RateChange]((text, 0) if isinstance(text, str) else text for text in pieces)
    while left:
        item = left.popleft()
        if not isinstance(item, tuple) or isinstance(item, RateChange):
            joint.add(item)
            continue
        text, piece = item
        try:
            patience = once if last is None else tries
            async with aclosing(placed_events(speak, text, places, patience, piece)) as events:
                async for event in events:
                    if has_more(event, piece):
                        left.appendleft((text, piece + 1))
                    for silence in joint.silences(event):
                        await items.put(silence)
                    if event.is_final and not left:
                        await joint.finish()
                    last = joint.joined(event, is_last=not left)
                    await items.put(last)
        except RequestRefused as refusal:  # raised before any event of this text
            if not is_too_long(text, refusal):
                raise
            left.extendleft((half, 0) for half in reversed(halve(text)))
    if last is not None and not last.is_final:  # the text ends with a pause
        await put_end(last, joint, items)


async def put_end(last: SpeechEvent, joint: Joint, items: Items) -> None:
    """Put the end of the joined utterance into `items`: pending silence and a final event.

    `last` is the utterance's last event so far.
    """
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
    """Yield the events of a text or a piece of it; positions of words are those in the source text.

    `tries` is passed to `events_in_turn`.
    """
    placed = None
    has_begun = False
    begin = partial(speak, text, piece=piece) if piece else partial(speak, text)
    async with aclosing(events_in_turn(begin, tries)) as events:
        async for event in events:
            if not (has_begun or piece):  # the first piece has passed the places of the whole text
                placed = places.find(text)
            has_begun = True
            yield event if placed is None else placed.moved(event)


async def events_of(
    speak: Speak, text: str, places: Places, tries: Tries = once, has_begun: bool = True
) -> AsyncGenerator[SpeechEvent, None]:
    """Yield the events of all pieces of a text, halving the text each time the server rejects its length.

    `tries` is passed to `events_in_turn`, except for the first piece of an utterance that has not begun.
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
