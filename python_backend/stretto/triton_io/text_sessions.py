"""Texts that are written while they are spoken: whose parts they are, in order, from their first word to their last.

Who hears the reply is told a name in its first event; who knows it may go on with the text, part by part.
"""

import asyncio
import secrets
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import replace
from typing import Protocol

from stretto.errors import InvalidRequest, Overloaded, shown
from stretto.families.base import Family
from stretto.families.text_stream import SubwordStream
from stretto.records.chunk import Chunk, LMChunk
from stretto.records.envelope import Envelope, FlowAddress
from stretto.records.prompt import Prompt
from stretto.records.text_part import ID_BYTES, TextPart
from stretto.shares import Shares
from stretto.streams.chunking import Pacer
from stretto.streams.segment import Segment

MAX_SESSIONS = 256  # a quarter of the slots: who opens texts and writes nothing leaves room for others
FIRST_WORD_S = 30.0


class TextModel(Protocol):
    """What is needed of the engine."""

    family: Family

    def generate(self, prompt: Prompt, request_id: str, pacer: Pacer) -> AsyncGenerator[LMChunk, None]:
        """The chunks of one utterance; whose text is open, that takes words as soon as it is asked for the first."""
        ...

    def text_stream(self) -> SubwordStream:
        """The ids of a text that comes in pieces, from its beginning; InvalidRequest where there are none."""
        ...

    def max_words(self, prompt: Prompt) -> int:
        """How many ids of an open text may follow the last row of its prompt, the end not among them."""
        ...

    async def write(self, request_id: str, ids: Sequence[int], is_last: bool = False) -> None:
        """Go on with the text of an utterance; InvalidRequest where it cannot."""
        ...


class TextSession:
    """The text that `prompt` opens. What is refused of it leaves it as it was."""

    def __init__(
        self, model: TextModel, utterance: str, flow: FlowAddress, prompt: Prompt, first_word_s: float = FIRST_WORD_S
    ) -> None:
        self.id, self.utterance, self.flow = secrets.token_urlsafe(ID_BYTES), utterance, flow
        self._model, self._first_word_s = model, first_word_s
        self._words, self._first = model.text_stream(), asyncio.Event()
        self._waiting: list[int] = []  # until there is a first word, with which the reply begins
        self._room = 1 + model.max_words(prompt)  # the first stands beside the prompt's last row
        self._next_part = 0
        self._has_begun = self.is_complete = False
        self._writing = asyncio.Lock()
        self._keep(*self._after(prompt.opening, is_last=False))

    async def write(self, part: TextPart) -> None:
        """Take the next part; InvalidRequest where that is another one, or where it cannot be spoken."""
        async with self._writing:
            if self.is_complete:
                raise InvalidRequest("session", "no further part, as the text is complete", f"part {part.part}")
            if part.part != self._next_part:
                raise InvalidRequest("session.part", f"{self._next_part}, the next", part.part)
            ids, words = self._after(part.text, part.is_last)
            if part.is_last and not (ids or self._first.is_set()):
                raise InvalidRequest("text", "at least one character in all", "none")
            if self._has_begun:
                await self._model.write(self.utterance, ids, part.is_last)
            self._keep(ids, words)
            self._next_part, self.is_complete = part.part + 1, part.is_last

    def _after(self, text: str, is_last: bool) -> tuple[list[int], SubwordStream]:
        ids, words = self._words.after(text, is_last)
        if len(ids) > self._room:
            raise InvalidRequest("text", f"at most {self._room} more tokens, as a frame reads one", len(ids))
        return ids, words

    def _keep(self, ids: list[int], words: SubwordStream) -> None:
        self._words = words
        self._room -= len(ids)
        if not self._has_begun:
            self._waiting += ids
        if ids:
            self._first.set()

    async def begin(self) -> list[int]:
        """The words with which the reply begins, once there are any; all others go to the model itself."""
        try:
            async with asyncio.timeout(self._first_word_s):
                await self._first.wait()
        except TimeoutError:
            raise InvalidRequest("text", f"a first word within {self._first_word_s:g} s", "none") from None
        self._has_begun = True
        return self._waiting


class TextSessions:
    """All texts that are open, by their names.

    limit: how many, of which a host has its share.
    """

    def __init__(self, model: TextModel, limit: int = MAX_SESSIONS) -> None:
        self._model, self._shares = model, Shares(limit)
        self._open: dict[str, TextSession] = {}

    def __len__(self) -> int:
        return len(self._open)

    @contextmanager
    def place(self, host: str) -> Iterator[None]:
        """Room for a text of `host`, for as long as the block runs; Overloaded where there is none."""
        with self._shares.taking(host) as is_left:
            if not is_left:
                total, own = self._shares.taken, self._shares.taken_by(host)
                raise Overloaded(f"{total} texts are being written already, {own} of them by this host; try again")
            yield

    async def write(self, part: TextPart) -> Envelope:
        """Take a part of a text; returns its receipt. InvalidRequest where there is no such text, or no such part."""
        session = self._open.get(part.session)
        if session is None:
            raise InvalidRequest("session.id", "that of a text that is being spoken", shown(part.session))
        await session.write(part)
        return Envelope(session.utterance, session.flow, None, receipt=part.part)

    async def speak(
        self, prompt: Prompt, utterance: str, flow: FlowAddress, pacer: Pacer
    ) -> AsyncGenerator[LMChunk, None]:
        """The chunks of the reply to a prompt whose text is open; the first tells the text's name, and nothing else.

        InvalidRequest where no first word comes, or what the model raises.
        """
        session = TextSession(self._model, utterance, flow, prompt)
        self._open[session.id] = session
        try:
            yield LMChunk(Chunk(0, Segment.AUDIO, session=session.id), None)
            begun = self._begun(prompt, await session.begin(), session.is_complete)
            # Nobody else runs from here until the model has been asked, and takes words: none is lost on the way.
            async with aclosing(self._model.generate(begun, utterance, pacer)) as chunks:
                async for each in chunks:
                    yield replace(each, chunk=replace(each.chunk, index=each.chunk.index + 1))
        finally:
            del self._open[session.id]

    def _begun(self, prompt: Prompt, words: Sequence[int], is_complete: bool) -> Prompt:
        """The prompt with the first word beside its last codes, and those that follow beside the first frames.

        Of a text that is complete it is one like any other, whose reply may not end before the end of the text is read.
        """
        track = self._model.family.text_track
        assert track is not None, "only a family that has one makes prompts of open texts"
        rows = prompt.rows.copy()
        rows[-1, track.stream] = words[0]
        begun = replace(prompt, rows=rows, track=tuple(words[1:]), opening="")
        if not is_complete:
            return begun
        ids, audio = (*begun.track, track.end_id), prompt.sampling.audio
        audio = replace(audio, min_rows=max(audio.min_rows, len(ids)))
        return replace(begun, track=ids, sampling=replace(prompt.sampling, audio=audio), is_open=False)
