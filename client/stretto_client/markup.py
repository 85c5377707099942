"""Conversion of Markdown, SSML and the output of language models to the text to speak, for whole and streamed texts."""

import re
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Collection
from contextlib import suppress
from typing import Literal, NamedTuple, Protocol, get_args

from stretto_client.decoration import ADVERB, EMOJI, FIRST_WORDS
from stretto_client.errors import RequestRefused
from stretto_client.fair_threads import Turns
from stretto_client.markdown import MAX_HELD_CHARS as MAX_HELD_CHARS
from stretto_client.markdown import MarkdownReader
from stretto_client.plain import PlainReader
from stretto_client.ssml import Change, SsmlReader, VoiceChange
from stretto_client.tags import INVISIBLE, MAX_NAMES, MAY_BEGIN, TagFilter
from stretto_contract.scripts import FURTHER_LETTERS, transliterated_words
from stretto_contract.sentence_ends import PAUSE, is_spoken

Markup = Literal["auto", "none", "markdown", "ssml"]
MARKUPS: tuple[str, ...] = get_args(Markup)
SHORT_CHARS = 100  # maximum on the event loop (6 ms)
SLICE_CHARS = 1000  # maximum per slice in the thread (60 ms)
READING = Turns(1, "markup")  # for longer texts, one slice at a time: 100,000 characters may take 3 s

# The last part is a line without final punctuation before another one.
DIRECTIONS = rf"\((?i:[a-z]{{2,12}}ly|{'|'.join(sorted(FIRST_WORDS))})\b"
HAS_ACTS = re.compile(rf"[*_(\[]\s?(?i:{'|'.join(sorted(FIRST_WORDS))}|{ADVERB.pattern})\b")
FORMULA = r"\$(?=[^\s$][^$\n]{0,200}\$)"
TAGS = rf"{MAY_BEGIN.pattern}|[{''.join(map(chr, INVISIBLE))}]|[^\s.,;:!?…][ \t\r]*\n\s*\S"
MAY_CHANGE_VOICE = re.compile(r"\[voice:|[<:]voice[\s/>]", re.IGNORECASE)
HAS_TAGS = re.compile(TAGS)
HAS_MARKS = re.compile(
    rf"[*_`~&\\#|{EMOJI}]|^[ \t]*(?:[-+>=]|\d{{1,3}}[.)]\s)|{DIRECTIONS}|{FORMULA}|{TAGS}", re.MULTILINE
)


class MarkupReader(Protocol):
    """Incremental converter of text with markup. The result does not depend on how the text is split into pieces."""

    pauses: deque[Change]  # duration in seconds of each returned PAUSE, in order, or the change that it stands for

    @property
    def left_out(self) -> list[str]:
        """Names of the blocks, tags and special tokens that were left out (`TagFilter.left_out`)."""

    def add(self, piece: str) -> str:
        """Add a piece of text; return the text that is ready to be spoken."""

    def end(self) -> str:
        """End the text; return the rest of the text to speak."""


def open_reader(
    markup: Markup, tags: Collection[str] | None = None, alphabets: Collection[str] = (), has_rates: bool = False
) -> MarkupReader:
    """Return a reader that converts text with markup to the text to speak.

    Args:
        tags: Tags that the model renders (`ModelProfile.tags`); None if unknown.
        alphabets: Phonetic alphabets that the model reads (`ModelProfile.phonemes`).
        has_rates: True if changes of the speaking rate have an effect.
    """
    if markup == "ssml":
        return SsmlReader(alphabets, has_rates)
    if markup == "none":
        return PlainReader(TagFilter(tags))
    return AutoReader(tags, alphabets, has_rates, may_be_ssml=markup == "auto")


def ssml_reader(reader: MarkupReader | None) -> SsmlReader | None:
    """Return the SSML reader that `reader` is or contains; None if there is none."""
    inner = reader.inner if isinstance(reader, AutoReader) else reader
    return inner if isinstance(inner, SsmlReader) else None


def has_marks(text: str, markup: Markup = "auto") -> bool:
    """Return True if `text` may contain markup, tags of language models, or a line end that needs punctuation."""
    return (HAS_TAGS if markup == "none" else HAS_MARKS).search(text) is not None


class Unspoken(NamedTuple):
    """Names of the parts of a text that are not spoken, or that have no effect.

    Attributes:
        tags: Names of tags, blocks and special tokens, and stage directions (`MarkupReader.left_out`).
        elements: Names of elements and attributes of SSML (`SsmlReader.without_effect`).
    """

    tags: list[str]
    elements: list[str]


async def find_unspoken(
    text: str, markup: Markup, tags: Collection[str], alphabets: Collection[str] = (), has_rates: bool = False
) -> Unspoken:
    """Return the parts of a complete text that `open_reader` with these arguments leaves out or ignores.

    If SSML is invalid, the result covers the text before the error, which is reported when the text is spoken.
    """
    has_acts = markup in ("auto", "markdown") and HAS_ACTS.search(text) is not None
    if not (has_acts or MAY_BEGIN.search(text)):
        return Unspoken([], [])
    tag_filter = TagFilter(tags, may_be_ssml=markup == "auto")
    if markup != "ssml":
        async for _ in read_slices(text, tag_filter):
            pass
        tag_filter.end()
    if markup != "ssml" and not (tag_filter.is_ssml or has_acts):
        return Unspoken(tag_filter.left_out, [])
    reader = open_reader(markup, tags, alphabets, has_rates)
    with suppress(RequestRefused):
        async for _ in read_slices(text, reader):
            pass
        reader.end()
    ssml = ssml_reader(reader)
    return Unspoken(reader.left_out, [] if ssml is None else ssml.without_effect)


async def find_transliterated(text: str, markup: Markup, tags: Collection[str]) -> list[str]:
    """Return the words of other scripts in the spoken part of a complete text; empty if its markup is invalid."""
    if FURTHER_LETTERS.search(text) is None:
        return []
    parts: Parts = [text]
    if has_marks(text, markup):
        try:
            parts = await read_text(text, markup, tags)
        except RequestRefused:
            return []
    spoken = " ".join(piece for piece in parts if isinstance(piece, str))
    return await READING.run(transliterated_words, spoken)


Parts = list[str | Change]


async def read_text(text: str, markup: Markup, tags: Collection[str] | None = None) -> Parts:
    """Return the parts of the text to speak and, between them, silence in seconds and changes of rate and voice.

    Raises:
        RequestRefused: SSML is not well-formed, or there is nothing to speak.
    """
    return await read_parts(text, open_reader(markup, tags))


async def read_parts(text: str, reader: MarkupReader) -> Parts:
    """Return the parts of a text, as `read_text` does; `reader` must be new."""
    spoken = "".join([token async for token in read_slices(text, reader)]) + reader.end()
    parts: Parts = []
    for token in re.split(f"({PAUSE})", spoken):
        if token == PAUSE and reader.pauses:
            parts.append(reader.pauses.popleft())
        elif is_spoken(token):
            parts.append(token.strip())
    if not any(isinstance(token, str) for token in parts):
        raise RequestRefused("text: expected text to speak, got only markup")
    return parts


def may_change_voice(text: str, markup: Markup) -> bool:
    """Return True if a text may have marks of voices."""
    return markup != "none" and MAY_CHANGE_VOICE.search(text.translate(INVISIBLE)) is not None


async def find_voices(text: str, markup: Markup, tags: Collection[str] | None = None) -> list[str]:
    """Return the names in a complete text's marks of voices, without duplicates; none if its markup is invalid."""
    if not may_change_voice(text, markup):
        return []
    with suppress(RequestRefused):
        parts = await read_text(text, markup, tags)
        names = [change.name for change in parts if isinstance(change, VoiceChange) and change.name is not None]
        return list(dict.fromkeys(names))
    return []


async def read_slices(piece: str, reader: MarkupReader | TagFilter) -> AsyncIterator[str]:
    """Yield the text to speak for `piece`, converted in slices so as not to block the event loop."""
    if len(piece) <= SHORT_CHARS:
        yield reader.add(piece)
        return
    for begin in range(0, len(piece), SLICE_CHARS):
        slice_ = piece[begin : begin + SLICE_CHARS]
        yield await READING.run(reader.add, slice_)


async def read_pieces(pieces: AsyncIterable[str], reader: MarkupReader) -> AsyncGenerator[str, None]:
    """Yield the text to speak for `pieces` as it is parsed; see `read_text` for exceptions."""
    try:
        async for piece in pieces:
            async for text in read_slices(piece, reader):
                if text:
                    yield text
        if text := reader.end():
            yield text
    finally:
        if close := getattr(pieces, "aclose", None):
            await close()


class AutoReader:
    """Reader that treats text as SSML if it begins with the root element `<speak`, otherwise as Markdown.

    In Markdown, the mark `[voice:NAME]` ends a text and begins another one in that voice.

    Args:
        tags, alphabets, has_rates: As for `open_reader`.
        may_be_ssml: False if the text is Markdown in any case.
    """

    def __init__(
        self,
        tags: Collection[str] | None = None,
        alphabets: Collection[str] = (),
        has_rates: bool = False,
        may_be_ssml: bool = True,
    ) -> None:
        self._filter = TagFilter(tags, may_be_ssml, reads_voices=True)
        self._tags = tags
        self._alphabets = alphabets
        self._has_rates = has_rates
        self._head = ""  # spaces at the beginning
        self._reader: MarkupReader | None = None
        self._left_out: list[str] = []  # tags left out of the texts in earlier voices
        self.pauses = deque[Change]()

    @property
    def inner(self) -> MarkupReader | None:
        """Reader that was chosen for the text; None until text has arrived."""
        return self._reader

    @property
    def left_out(self) -> list[str]:
        directions = self._left_out + (self._reader.left_out if self._reader is not None else [])
        return list(dict.fromkeys(self._filter.left_out + directions))[:MAX_NAMES]

    def add(self, piece: str) -> str:
        return self._read(self._filter.add(piece), is_last=False)

    def end(self) -> str:
        text = self._read(self._filter.end(), is_last=True)
        return text + (self._reader.end() if self._reader is not None else "")

    def _read(self, text: str, is_last: bool) -> str:
        if self._filter.is_ssml:
            return self._read_text(text, is_last)
        first, *others = text.split(PAUSE)
        ready = [self._read_text(first, is_last and not others)]
        for number, spoken in enumerate(others, 1):
            ready += self._end_voice(), self._read_text(spoken, is_last and number == len(others))
        return "".join(ready)

    def _end_voice(self) -> str:
        """End the text in one voice; return the rest of it and the mark of the change."""
        self.pauses.append(VoiceChange(self._filter.voices.popleft()))
        self._head = ""
        if self._reader is None:
            return PAUSE
        text = self._reader.end()
        self._left_out = list(dict.fromkeys(self._left_out + self._reader.left_out))[:MAX_NAMES]
        self._reader = None
        return text + PAUSE

    def _read_text(self, text: str, is_last: bool) -> str:
        if self._reader is None:
            text = self._head + text
            self._head = ""
            if not (text.strip() or is_last):
                self._head = text
                return ""
            text = text.lstrip() if self._filter.is_ssml else text
            is_ssml = self._filter.is_ssml
            self._reader = SsmlReader(self._alphabets, self._has_rates) if is_ssml else MarkdownReader(self._tags)
            self.pauses = self._reader.pauses if is_ssml else self.pauses
        return self._reader.add(text)
