"""Triton service of the language model: requests and streamed text sessions."""

import asyncio
import secrets
import uuid
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import ExitStack, aclosing, contextmanager
from dataclasses import replace
from typing import Any, Protocol

from stretto.disconnects import Disconnects
from stretto.errors import Cancelled, Closing, InvalidRequest, NoCapacity, Overloaded, shown
from stretto.families.base import Family
from stretto.families.text import SubwordStream
from stretto.limits import FairLimit
from stretto.records.chunk import Chunk, Envelope, FlowAddress, LMChunk
from stretto.records.prompt import ID_BYTES, Prompt, TextPart
from stretto.streams.chunking import Pacer
from stretto.streams.layout import Segment
from stretto.triton_io.callers import Caller, refuse
from stretto.triton_io.chunk_sender import ChunkSender, Responses, ResponseThread, SenderLimits
from stretto.triton_io.flow import DecoderRefused, FlowTable
from stretto.triton_io.metrics import BuildInfo, Gauges
from stretto.triton_io.seal import Seal, read_prompt
from stretto.triton_io.stub import EventLoop

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
        """Return the number of ids, without the end id, that a streamed text may have after the last prompt row."""
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
                raise InvalidRequest("session", "no further part, because the text is complete", f"part {part.part}")
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
            raise InvalidRequest("text", f"at most {self._room} more tokens, because each frame reads one", len(ids))
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
        self._model, self._shares = model, FairLimit(limit)
        self._open: dict[str, TextSession] = {}

    def __len__(self) -> int:
        return len(self._open)

    @contextmanager
    def place(self, host: str) -> Iterator[None]:
        """Reserve a session for `host` while the block runs; raise Overloaded if none is free."""
        with self._shares.reserving(host) as is_left:
            if not is_left:
                total, own = self._shares.held, self._shares.held_by(host)
                raise Overloaded(f"{total} streamed texts are open already, {own} of them from this host; try again")
            yield

    async def write(self, part: TextPart) -> Envelope:
        """Accept a part and return its receipt; raise InvalidRequest if session or part does not exist."""
        session = self._open.get(part.session)
        if session is None:
            raise InvalidRequest("session.id", "the id of an open streamed text", shown(part.session))
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
        assert track is not None, "only families with a text track have prompts of open texts"
        rows = prompt.rows.copy()
        rows[-1, track.stream] = words[0]
        begun = replace(prompt, rows=rows, track=tuple(words[1:]), opening="")
        if not is_complete:
            return begun
        ids, audio = (*begun.track, track.end_id), prompt.sampling.audio
        audio = replace(audio, min_rows=max(audio.min_rows, len(ids)))
        return replace(begun, track=ids, sampling=replace(prompt.sampling, audio=audio), is_open=False)


METRICS = {
    "active_utterances": "Utterances in flight",
    "utterances_total": "Utterances started",
    "cancelled_total": "Utterances that the client cancelled or the decoder gave up",
    "failed_total": "Utterances that failed",
    "rejected_total": "Utterances rejected: unsupported here, or too many in flight",
    "pairs": "Guided utterances being generated",
    "finished_total": "Utterances that the language model has finished",
    "preempted_pairs_total": "Guidance pairs preempted by the scheduler",
    "frames_total": "Frames generated, counted when their chunks are sent",
    "unguided_total": "Frames of guided utterances that were sampled without guidance; more than 0 is a bug",
    "frames_unguided_by_policy_total": "Frames sampled without guidance because the utterance's policy allows it",
    "engine_steps_total": "Steps of the engine",
    "engine_busy_seconds_total": "Seconds in which the engine had a step in flight",
    "engine_rows_total": "Rows computed: prompt rows, and one per step for each conditional or unconditional request",
    "preemptions_total": "Requests preempted by older ones; the two of a pair count separately",
    "dropped_halves_total": "Unconditional requests dropped by adaptive guidance under load",
    "restored_halves_total": "Unconditional requests resumed by adaptive guidance",
    "step_seconds": "Seconds from the start of the last step to its output",
    "running_requests": "Requests in the engine's batch; a pair counts twice",
    "waiting_requests": "Requests waiting for a slot in the batch",
    "running_pairs": "Pairs with both requests in the batch",
    "held_pairs": "Pairs with one request waiting for the other",
    "kv_usage": "Share of the KV blocks in use",
    "replies_without_words": "Utterances blocked until more of their streamed text arrives",
    "seconds_without_words_total": "Seconds in which utterances were blocked waiting for text",
}
STATS_PERIOD_S = 0.5


class LanguageModel(TextModel, Protocol):
    """Interface of the engine. The pacer sets chunk sizes; closing the chunks aborts the reply."""

    def stats(self) -> dict[str, float]:
        """Return the metrics by name; those in METRICS are published."""
        ...


class SpeechService:
    """Server of utterances on one event loop, which also accepts parts of their streamed texts."""

    def __init__(
        self, model: LanguageModel, loop: EventLoop, table: FlowTable, limits: SenderLimits, seal: Seal
    ) -> None:
        self._model = model
        self._loop = loop
        self.table = table
        self._limits = limits
        self._seal = seal
        self._disconnects = Disconnects.from_environment()
        self._thread = ResponseThread()
        self._texts = TextSessions(model)
        self._gauges, self._info = Gauges("language_model", METRICS), BuildInfo()
        loop.start(self._report())

    def accept(self, request: Any) -> None:
        """Accept a request and return immediately; its utterance gets an internal id.

        The client's request id may be empty or duplicated, so it is not used as a key.
        """
        utterance = uuid.uuid4().hex
        caller = Caller(request, self._disconnects)
        try:
            parsed = read_prompt(request, self._seal)
        except Exception as error:
            refuse(caller.sender, error, f"utterance {utterance}")
            return
        responses = Responses(caller, self._thread, self._seal)
        if isinstance(parsed, TextPart):
            self._loop.start(self._take(parsed, responses))
        elif caller.is_marked:
            self._loop.start(self._end(utterance, responses, Cancelled("the client has disconnected")))
        else:
            self._loop.start(self._serve(utterance, parsed, responses, caller.host))

    def close(self) -> None:
        """End every utterance and stop."""
        self._loop.close()
        self._thread.close()
        self.table.remove()

    async def _take(self, part: TextPart, responses: Responses) -> None:
        """Accept a part of streamed text; the decoder, which sends all answers, acknowledges it."""
        try:
            receipt = await self._texts.write(part)
        except Exception as error:
            await responses.refuse(error, "a part of a text")
            return
        responses.send(receipt.to_bytes(), None)
        await responses.end()

    async def _serve(self, utterance: str, prompt: Prompt, responses: Responses, host: str) -> None:
        self._gauges.add("utterances_total", 1)
        with ExitStack() as held:
            try:
                if prompt.is_open:
                    held.enter_context(self._texts.place(host))
                chunk_sender = ChunkSender(responses, self.table.claim(), utterance, self._limits, prompt.delivery)
            except Overloaded as error:
                self._gauges.add("rejected_total", 1)
                await responses.refuse(error, f"utterance {utterance}")
                return
            await self._answer(utterance, prompt, responses, chunk_sender)

    async def _answer(self, utterance: str, prompt: Prompt, responses: Responses, chunk_sender: ChunkSender) -> None:
        self._gauges.add("active_utterances", 1)
        try:
            failure = await self._speak(chunk_sender, prompt, utterance)
        except asyncio.CancelledError:
            failure = Closing("server is stopping")
        finally:
            chunk_sender.release()
            self._gauges.add("active_utterances", -1)
        await self._end(utterance, responses, failure)

    async def _speak(self, chunk_sender: ChunkSender, prompt: Prompt, utterance: str) -> Exception | None:
        """Send the utterance and wait until the decoder has answered all of it.

        Return the error that ended it, if any.
        """
        failure: Exception | None = None
        try:
            await chunk_sender.pump(self._chunks(chunk_sender, prompt, utterance))
        except Exception as error:
            failure = error
        try:
            await chunk_sender.settle()
        except Exception as error:
            failure = failure or error
        return failure

    def _chunks(self, chunk_sender: ChunkSender, prompt: Prompt, utterance: str) -> AsyncGenerator[LMChunk, None]:
        if prompt.is_open:
            return self._texts.speak(prompt, utterance, chunk_sender.flow, chunk_sender.pacer)
        return self._model.generate(prompt, utterance, chunk_sender.pacer)

    async def _end(self, utterance: str, responses: Responses, failure: Exception | None) -> None:
        """Send the final flag with the error, if any. Utterances fail only here."""
        if failure is None or isinstance(failure, Cancelled):
            self._gauges.add("cancelled_total", failure is not None)
            await responses.end()
        else:
            is_refused = isinstance(failure, InvalidRequest | DecoderRefused | NoCapacity)
            self._gauges.add("rejected_total" if is_refused else "failed_total", 1)
            await responses.refuse(failure, f"utterance {utterance}")

    async def _report(self) -> None:
        while True:
            self._gauges.update(self._model.stats())
            await asyncio.sleep(STATS_PERIOD_S)
