"""Triton service of the language model: utterances, and sessions of streamed text and live audio."""

import asyncio
import secrets
import uuid
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import ExitStack, aclosing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from stretto.disconnects import Disconnects
from stretto.errors import Cancelled, Closing, InvalidRequest, NoCapacity, Overloaded, shown
from stretto.family.base import Family
from stretto.family.pronunciations import SourceWords, server_dictionary
from stretto.family.text import StreamedText
from stretto.hops import Hop, stamp
from stretto.records.chunk import MAX_ALIGNED_CHARS, Chunk, Envelope, LMChunk
from stretto.records.flow_address import FlowAddress
from stretto.records.prompt import ID_BYTES, AudioPart, Prompt, Resumption, SourceWord, TextPart
from stretto.records.sampling import Delivery
from stretto.streams.chunking import ChunkPolicy, Pacer
from stretto.streams.layout import Segment
from stretto.triton_io.adapter_commands import Adapters, run_command
from stretto.triton_io.callers import Caller, refuse
from stretto.triton_io.chunk_sender import ChunkSender, Responses, ResponseThread, SenderLimits
from stretto.triton_io.flow import DecoderRefused, FlowTable
from stretto.triton_io.live_sessions import LiveModel, LiveSessions
from stretto.triton_io.metrics import BuildInfo, Gauges
from stretto.triton_io.seal import Seal
from stretto.triton_io.stub import EventLoop
from stretto.triton_io.tensors import ADAPTERS, read_bytes, read_prompt
from stretto_contract.limits import FairLimit
from stretto_contract.pronunciation import Dictionary, Pronouncer, Replacement

MAX_SESSIONS = 256  # a quarter of the slots, so that idle sessions leave room for other requests
FIRST_WORD_S = 30.0


class SpeechModel(Protocol):
    """Interface of the engine (`engine.llm.SpeechLLM`), as used for streamed text."""

    family: Family

    def generate(self, prompt: Prompt, request_id: str, pacer: Pacer, host: str = "") -> AsyncGenerator[LMChunk, None]:
        """Yield the chunks of one reply.

        For a prompt with open text, `write` is accepted once the first chunk has been requested.
        """
        ...

    def text_stream(self) -> StreamedText:
        """Return an incremental tokenizer for streamed text; raise InvalidRequest if the model has none."""
        ...

    def max_words(self, prompt: Prompt) -> int:
        """Return the maximum number of token ids of a streamed text after the prompt, not counting the end id."""
        ...

    async def write(self, request_id: str, ids: Sequence[int], is_last: bool = False) -> None:
        """Append token ids to the text of a reply; raise InvalidRequest if that is not possible."""
        ...


NO_WORDS = Dictionary({})


class ReadPart(NamedTuple):
    """Result of reading a part of a text, before it is accepted.

    Attributes:
        ids: Token ids that have become final.
        words: Tokenizer for the remaining text.
        pronouncer: Replacement of words in the remaining text.
    """

    ids: list[int]
    words: StreamedText
    pronouncer: Pronouncer
    changes: list[Replacement]


class TextSession:
    """Streamed text of one utterance. A rejected part has no effect, so the client may send a corrected one.

    Args:
        first_word_s: Maximum wait for the first complete word.

    Attributes:
        is_complete: True once the last part has been accepted.
        text: If word times were requested, the text so far, cut after MAX_ALIGNED_CHARS + 1 characters.
        sources: Words of the text so far for which the model itself reports times.
    """

    def __init__(
        self,
        model: SpeechModel,
        utterance: str,
        flow: FlowAddress,
        prompt: Prompt,
        first_word_s: float = FIRST_WORD_S,
        dictionary: Dictionary = NO_WORDS,
    ) -> None:
        self.id = secrets.token_urlsafe(ID_BYTES)
        self.utterance = utterance
        self.flow = flow
        self._model = model
        self._first_word_s = first_word_s
        self._words = model.text_stream()
        self._first = asyncio.Event()
        self._pronouncer = Pronouncer(tuple(filter(None, (Dictionary(prompt.spellings), dictionary))))
        self._source_words = SourceWords()
        self._waiting: list[int] = []  # ids with which the reply begins
        track = model.family.text_track
        assert track is not None, "only families with a text track have sessions of texts"
        self._num_first = track.num_prompt_ids
        self._room = model.max_words(prompt) + self._num_first * model.family.reads_text_by_row
        self._next_part = 0
        self._has_begun = self.is_complete = False
        self._writing = asyncio.Lock()
        self.text = ""
        self._keeps_text = prompt.alignment is not None
        self.sources: tuple[SourceWord, ...] = ()
        self._num_timed = 0  # number of words with times so far
        self._keep(prompt.opening, self._after(prompt.opening, is_last=False))

    async def write(self, text_part: TextPart) -> None:
        """Append the next part; raise InvalidRequest if it is out of order or the text becomes too long."""
        async with self._writing:
            if self.is_complete:
                raise InvalidRequest(
                    "session", "no further part, because the text is complete", f"part {text_part.part}"
                )
            if text_part.part != self._next_part:
                raise InvalidRequest("session.part", f"{self._next_part}, the number of the next part", text_part.part)
            read = self._after(text_part.text, text_part.is_last)
            if text_part.is_last and not (read.ids or self._waiting or self._has_begun):
                raise InvalidRequest("text", "at least one character in all", "none")
            if self._has_begun:
                await self._model.write(self.utterance, read.ids, text_part.is_last)
            self._next_part = text_part.part + 1
            self.is_complete = text_part.is_last
            self._keep(text_part.text, read)

    def _after(self, text: str, is_last: bool) -> ReadPart:
        spoken, changes, pronouncer = self._pronouncer.after(text, is_last)
        ids, words = self._words.after(spoken, is_last)
        if len(ids) > self._room:
            reason = "each frame reads one" if self._model.family.reads_text_by_row else "they take rows of the reply"
            raise InvalidRequest("text", f"at most {self._room} more tokens, because {reason}", f"{len(ids)} tokens")
        return ReadPart(ids, words, pronouncer, changes)

    def _keep(self, text: str, read: ReadPart) -> None:
        ids = read.ids
        self._words = read.words
        self._pronouncer = read.pronouncer
        words: Sequence[SourceWord] = getattr(read.words, "sources", ())  # if the model reports word times
        # A word's source may grow with this part, as "(SQL" does with ")s". A time that was reported keeps its word.
        self.sources = self._source_words.read(words, read.changes)
        if self._keeps_text:
            self.text = (self.text + text)[: MAX_ALIGNED_CHARS + 1]
        self._room -= len(ids)
        if not self._has_begun:
            self._waiting += ids
        if self.is_complete or len(self._waiting) >= self._num_first:
            self._first.set()

    def placed(self, chunk: Chunk) -> Chunk:
        """Return the reply's next chunk with the positions of its words in the text."""
        if not self.sources:
            return chunk
        first = self._num_timed
        self._num_timed = self._num_timed + len(chunk.marks)
        # A word that is spoken as several words has several equal sources. Its time is that of the first.
        marks = tuple(
            replace(mark, word=source.word, place=(source.start, source.end))
            for index, (mark, source) in enumerate(zip(chunk.marks, self.sources[first:], strict=False), first)
            if index == 0 or source != self.sources[index - 1]
        )
        report = chunk.report
        if report is not None:
            timed = self.sources[self._num_timed - 1 : self._num_timed]
            left = dict.fromkeys(source for source in self.sources[self._num_timed :] if source not in timed)
            report = replace(report, untimed_words=tuple(source.word for source in left))
        return replace(chunk, marks=marks, report=report)

    async def begin(self) -> list[int]:
        """Wait for the ids before the first frame, and return those that the reply begins with.

        Later ids are sent to the model as they become known.
        """
        try:
            async with asyncio.timeout(self._first_word_s):
                await self._first.wait()
        except TimeoutError:
            expected = f"a first word within {self._first_word_s:g} s"
            if self._num_first > 1:
                expected = f"{self._num_first} tokens or the end of the text within {self._first_word_s:g} s"
            got = f"{len(self._waiting)} tokens" if self._waiting else "none"
            raise InvalidRequest("text", expected, got) from None
        self._has_begun = True
        return self._waiting


class TextSessions:
    """Open streamed texts, keyed by session id."""

    def __init__(self, model: SpeechModel, limit: int = MAX_SESSIONS, dictionary: Dictionary = NO_WORDS) -> None:
        self._model = model
        self._shares = FairLimit(limit)
        self._dictionary = dictionary
        self._open: dict[str, TextSession] = {}

    def __len__(self) -> int:
        return len(self._open)

    @contextmanager
    def place(self, host: str) -> Iterator[None]:
        """Reserve a session for `host` during the `with` block; raise Overloaded if none is free."""
        with self._shares.reserving(host) as is_left:
            if not is_left:
                total = self._shares.held
                num_of_host = self._shares.held_by(host)
                raise Overloaded(
                    f"{total} streamed texts are open already, {num_of_host} of them from this host; try again"
                )
            yield

    async def write(self, text_part: TextPart) -> Envelope:
        """Append a part and return its receipt."""
        session = self._open.get(text_part.session)
        if session is None:
            raise InvalidRequest("session.id", "the id of an open streamed text", shown(text_part.session))
        await session.write(text_part)
        return Envelope(session.utterance, session.flow, None, receipt=text_part.part)

    async def speak(
        self, prompt: Prompt, utterance: str, flow: FlowAddress, pacer: Pacer, host: str = ""
    ) -> AsyncGenerator[LMChunk, None]:
        """Yield the chunks of a reply whose text is still being streamed.

        The first chunk contains no frames, but the voice and the session id that the client needs to send text.
        """
        session = TextSession(self._model, utterance, flow, prompt, dictionary=self._dictionary)
        self._open[session.id] = session
        try:
            yield LMChunk(Chunk(0, Segment.AUDIO, session=session.id, voice=prompt.voice, sound=prompt.sound), None)
            begun = self._begun(replace(prompt, sound=None), await session.begin(), session.is_complete)
            # No other coroutine runs from here until the model accepts text, so no text is lost.
            async with aclosing(self._model.generate(begun, utterance, pacer, host)) as chunks:
                async for chunk in chunks:
                    is_aligned = chunk.chunk.is_final and len(session.text) <= MAX_ALIGNED_CHARS
                    written = session.text if is_aligned else ""
                    placed = session.placed(chunk.chunk)
                    yield replace(chunk, chunk=replace(placed, index=placed.index + 1, written=written))
        finally:
            del self._open[session.id]

    def _begun(self, prompt: Prompt, words: Sequence[int], is_complete: bool) -> Prompt:
        """Return the prompt with the text so far.

        The first ids are in the prompt's last rows (`TextTrack.num_prompt_ids`), and the others are for the reply's
        first rows. If text is not read row by row, all ids are for the reply. If the text is complete, the result is an
        ordinary prompt whose minimum length covers the text and its end id.
        """
        track = self._model.family.text_track
        assert track is not None, "only families with a text track have prompts of open texts"
        if not self._model.family.reads_text_by_row:
            begun = replace(prompt, track=(*prompt.track, *words), opening="")
            return replace(begun, track=(*begun.track, track.end_id), is_open=False) if is_complete else begun
        num_first = track.num_prompt_ids
        num_rows = len(prompt.rows) - num_first
        first = words[:num_first]
        rows = np.concatenate([prompt.rows[:num_rows], prompt.rows[len(prompt.rows) - len(first) :]])
        rows[num_rows:, track.stream] = first
        begun = replace(prompt, rows=rows, track=tuple(words[len(first) :]), opening="")
        if not is_complete:
            return begun
        ids = (*begun.track, track.end_id)
        audio = prompt.sampling.audio
        audio = replace(audio, min_rows=max(audio.min_rows, len(ids)))
        return replace(begun, track=ids, sampling=replace(prompt.sampling, audio=audio), is_open=False)


METRICS = {
    "active_utterances": "Utterances in flight",
    "utterances_total": "Utterances started",
    "cancelled_total": "Utterances that the client cancelled or the decoder abandoned",
    "failed_total": "Utterances that failed",
    "rejected_total": "Utterances rejected: unsupported here, or too many in flight",
    "pairs": "Guided utterances being generated",
    "finished_total": "Utterances that the language model has finished",
    "preempted_pairs_total": "CFG pairs preempted by the scheduler",
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
    "live_sessions": "Live sessions that are open",
    "live_refused_total": "Live sessions refused, because too many were open",
    "live_frames_total": "Frames of audio that live sessions have received",
    "live_late_frames_total": "Frames of live sessions that were read more than a frame's duration after they were due",
    "live_lag_frames": "Largest number of frames that a live session has received and not read",
    "live_ticks_total": "Frames that live sessions have read",
    "live_tick_seconds_total": "Seconds from when a frame of a live session was due until it was read",
    "live_ticks_20ms_total": "Frames of live sessions that were read at most 20 ms after they were due",
    "live_ticks_40ms_total": "Frames of live sessions that were read at most 40 ms after they were due",
    "live_ticks_80ms_total": "Frames of live sessions that were read at most 80 ms after they were due",
    "live_rows_recomputed_total": "Rows of preempted live sessions; 0 while their KV blocks are reserved",
    "replies_without_frames": "Live sessions blocked until more audio arrives",
}
STATS_PERIOD_S = 0.5


class LanguageModel(SpeechModel, LiveModel, Protocol):
    """Interface of the engine (`engine.llm.SpeechLLM`). Closing an iterator of chunks aborts its reply."""

    adapters: Adapters

    def stats(self) -> dict[str, float]:
        """Return metrics, keyed by name; those in METRICS are published."""
        ...


class SpeechService:
    """Service of the language model: runs all utterances on one event loop.

    Args:
        pronunciations: File of the server's pronunciation dictionary.
    """

    def __init__(
        self,
        model: LanguageModel,
        loop: EventLoop,
        table: FlowTable,
        limits: SenderLimits,
        seal: Seal,
        pronunciations: Path | None = None,
    ) -> None:
        self._model = model
        self._loop = loop
        self.table = table
        self._limits = limits
        self._seal = seal
        self._disconnects = Disconnects.from_environment()
        self._thread = ResponseThread()
        dictionary = NO_WORDS if pronunciations is None else server_dictionary(pronunciations, model.family)
        self._texts = TextSessions(model, dictionary=dictionary)
        self._live = LiveSessions(model, seal, table)
        self._gauges = Gauges("language_model", METRICS)
        self._info = BuildInfo()
        loop.start(self._report())

    def accept(self, request: Any) -> None:
        """Accept a request (a prompt, a part of streamed text or live audio, or a command), and return immediately.

        Each utterance gets a random id, because clients' request ids may be empty or duplicated.
        """
        stamp(Hop.MODEL_ACCEPTS)
        utterance = uuid.uuid4().hex
        caller = Caller(request, self._disconnects)
        try:
            command = read_bytes(request, ADAPTERS)
            parsed = read_prompt(request, self._seal) if command is None else command
        except Exception as error:
            refuse(caller.sender, error, f"utterance {utterance}")
            return
        responses = Responses(caller, self._thread, self._seal)
        if isinstance(parsed, bytes):
            self._loop.start(self._administer(parsed, responses))
        elif isinstance(parsed, TextPart | AudioPart):
            self._loop.start(self._take(parsed, responses))
        elif caller.is_flagged:
            self._loop.start(self._end(utterance, responses, Cancelled("the client has disconnected")))
        else:
            self._loop.start(self._serve(utterance, parsed, responses, caller.host))

    def close(self) -> None:
        """End all utterances, stop the threads, and remove the acknowledgement table."""
        self._loop.close()
        self._thread.close()
        self.table.remove()

    async def _administer(self, command: bytes, responses: Responses) -> None:
        try:
            answer = await run_command(self._model.adapters, command)
        except Exception as error:
            await responses.refuse(error, "a command for adapters")
            return
        responses.answer(answer)
        await responses.end()

    async def _take(self, text_or_audio: TextPart | AudioPart, responses: Responses) -> None:
        """Append a part of streamed text or live audio, and acknowledge it.

        The receipt goes through the decoder, because only the decoder answers clients.
        """
        try:
            receipt = await (
                self._texts.write(text_or_audio)
                if isinstance(text_or_audio, TextPart)
                else self._live.write(text_or_audio)
            )
        except Exception as error:
            await responses.refuse(error, "a part of a session")
            return
        responses.send(receipt.to_bytes(), None)
        await responses.end()

    async def _serve(self, utterance: str, asked: Prompt | Resumption, responses: Responses, host: str) -> None:
        self._gauges.add("utterances_total", 1)
        if isinstance(asked, Prompt):
            delivery = asked.delivery
        else:
            delivery = Delivery(chunking=ChunkPolicy(frame_rate=self._model.family.frame_rate))
        with ExitStack() as held:
            try:
                is_open = isinstance(asked, Prompt) and asked.is_open
                if is_open and self._model.family.code_track is None:  # live sessions have their own limit
                    held.enter_context(self._texts.place(host))
                chunk_sender = ChunkSender(responses, self.table.claim(), utterance, self._limits, delivery)
            except Overloaded as error:
                self._gauges.add("rejected_total", 1)
                await responses.refuse(error, f"utterance {utterance}")
                return
            await self._answer(utterance, asked, responses, chunk_sender, host)

    async def _answer(
        self, utterance: str, asked: Prompt | Resumption, responses: Responses, chunk_sender: ChunkSender, host: str
    ) -> None:
        self._gauges.add("active_utterances", 1)
        try:
            chunks = self._chunks(chunk_sender, asked, utterance, host)
            failure = await self._speak(chunk_sender, chunks)
        except asyncio.CancelledError:
            failure = Closing("server is stopping")
        finally:
            chunk_sender.release()
            self._gauges.add("active_utterances", -1)
        await self._end(utterance, responses, failure)

    async def _speak(self, chunk_sender: ChunkSender, chunks: AsyncGenerator[LMChunk, None]) -> Exception | None:
        """Send all chunks, and wait until the decoder has answered them; return the utterance's error, or None."""
        failure: Exception | None = None
        try:
            await chunk_sender.pump(chunks)
        except Exception as error:
            failure = error
        try:
            await chunk_sender.settle()
        except Exception as error:
            failure = failure or error
        return failure

    def _chunks(
        self, chunk_sender: ChunkSender, asked: Prompt | Resumption, utterance: str, host: str
    ) -> AsyncGenerator[LMChunk, None]:
        flow = chunk_sender.flow
        pacer = chunk_sender.pacer
        if isinstance(asked, Resumption):
            return self._live.resume(asked, utterance, flow)
        if asked.is_open and self._model.family.code_track is not None:
            return self._live.follow(asked, utterance, flow, pacer, host)
        if asked.is_open:
            return self._texts.speak(asked, utterance, flow, pacer, host)
        if any(task.speaks for task in self._model.family.tasks if task.name == asked.task):
            chunk_sender.begin_speech()
        return self._model.generate(asked, utterance, pacer, host)

    async def _end(self, utterance: str, responses: Responses, failure: Exception | None) -> None:
        """Send the final flag, with the error if there is one, and count the outcome."""
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
