"""Streamed text sessions: parts of each text in order, from the first word to the last.

The first event of a reply contains the session's name. Whoever knows it may continue the text, part by part.
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

MAX_SESSIONS = 256  # a quarter of the slots, so that idle sessions leave room for other requests
FIRST_WORD_S = 30.0


class TextModel(Protocol):
    """Interface of the engine."""

    family: Family

    def generate(self, prompt: Prompt, request_id: str, pacer: Pacer) -> AsyncGenerator[LMChunk, None]:
        """Yield the chunks of one utterance; with open text it accepts text once the first chunk is requested."""
        ...

    def text_stream(self) -> SubwordStream:
        """Return an incremental tokenizer for streamed text; raise InvalidRequest if the model has none."""
        ...

    def max_words(self, prompt: Prompt) -> int:
        """Return how many ids of a streamed text may follow the last prompt row, its end id not counted."""
        ...

    async def write(self, request_id: str, ids: Sequence[int], is_last: bool = False) -> None:
        """Append ids to the text of an utterance; raise InvalidRequest if that is impossible."""
        ...


class TextSession:
    """Streamed text opened by `prompt`; a rejected part leaves it unchanged."""

    def __init__(
        self, model: TextModel, utterance: str, flow: FlowAddress, prompt: Prompt, first_word_s: float = FIRST_WORD_S
    ) -> None:
        self.id, self.utterance, self.flow = secrets.token_urlsafe(ID_BYTES), utterance, flow
        self._model, self._first_word_s = model, first_word_s
        self._words, self._first = model.text_stream(), asyncio.Event()
        self._waiting: list[int] = []  # ids before the first word, with which the reply begins
        self._room = 1 + model.max_words(prompt)  # the first id belongs to the prompt's last row
        self._next_part = 0
        self._has_begun = self.is_complete = False
        self._writing = asyncio.Lock()
        self._keep(*self._after(prompt.opening, is_last=False))

    async def write(self, part: TextPart) -> None:
        """Accept the next part; raise InvalidRequest if it is out of order or cannot be spoken."""
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
        """Wait for, and return, the ids with which the reply begins; later ones go directly to the model."""
        try:
            async with asyncio.timeout(self._first_word_s):
                await self._first.wait()
        except TimeoutError:
            raise InvalidRequest("text", f"a first word within {self._first_word_s:g} s", "none") from None
        self._has_begun = True
        return self._waiting


class TextSessions:
    """Open streamed texts by name; `limit` is their number, shared fairly among hosts."""

    def __init__(self, model: TextModel, limit: int = MAX_SESSIONS) -> None:
        self._model, self._shares = model, Shares(limit)
        self._open: dict[str, TextSession] = {}

    def __len__(self) -> int:
        return len(self._open)

    @contextmanager
    def place(self, host: str) -> Iterator[None]:
        """Reserve a session for `host` while the block runs; raise Overloaded if none is free."""
        with self._shares.taking(host) as is_left:
            if not is_left:
                total, own = self._shares.taken, self._shares.taken_by(host)
                raise Overloaded(f"{total} texts are being written already, {own} of them by this host; try again")
            yield

    async def write(self, part: TextPart) -> Envelope:
        """Accept a part and return its receipt; raise InvalidRequest if session or part does not exist."""
        session = self._open.get(part.session)
        if session is None:
            raise InvalidRequest("session.id", "that of a text that is being spoken", shown(part.session))
        await session.write(part)
        return Envelope(session.utterance, session.flow, None, receipt=part.part)

    async def speak(
        self, prompt: Prompt, utterance: str, flow: FlowAddress, pacer: Pacer
    ) -> AsyncGenerator[LMChunk, None]:
        """Yield the chunks of the reply to a prompt with open text; the first contains only the session's name.

        Raises:
            InvalidRequest: If no first word arrives in time.
        """
        session = TextSession(self._model, utterance, flow, prompt)
        self._open[session.id] = session
        try:
            yield LMChunk(Chunk(0, Segment.AUDIO, session=session.id), None)
            begun = self._begun(prompt, await session.begin(), session.is_complete)
            # No other coroutine runs from here until the model accepts text, so no text is lost.
            async with aclosing(self._model.generate(begun, utterance, pacer)) as chunks:
                async for each in chunks:
                    yield replace(each, chunk=replace(each.chunk, index=each.chunk.index + 1))
        finally:
            del self._open[session.id]

    def _begun(self, prompt: Prompt, words: Sequence[int], is_complete: bool) -> Prompt:
        """Return the prompt with the first word in its last row and the next ones in the first frames.

        For a complete text the result is an ordinary prompt whose reply cannot end before the end of the text is read.
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
