"""Triton service of the language model: each request becomes an utterance that ends with the final flag."""

import asyncio
import uuid
from collections.abc import AsyncGenerator
from contextlib import ExitStack
from typing import Any, Protocol

from stretto.departures import Departures
from stretto.errors import Cancelled, Closing, InvalidRequest, NoPlace, Overloaded
from stretto.records.chunk import LMChunk
from stretto.records.prompt import Prompt
from stretto.records.text_part import TextPart
from stretto.triton_io.callers import Caller
from stretto.triton_io.chunk_sender import ChunkSender, SenderLimits
from stretto.triton_io.event_loop import EventLoop
from stretto.triton_io.failures import refuse
from stretto.triton_io.flow import DecoderRefused, FlowTable
from stretto.triton_io.metrics import BuildInfo, Gauges
from stretto.triton_io.prompt_tensors import read_prompt
from stretto.triton_io.responses import Responses, ResponseThread
from stretto.triton_io.seal import Seal
from stretto.triton_io.text_sessions import TextModel, TextSessions

METRICS = {
    "active_utterances": "Utterances in flight",
    "utterances_total": "Utterances started",
    "cancelled_total": "Utterances that the client cancelled or the decoder gave up",
    "failed_total": "Utterances that failed",
    "rejected_total": "Utterances that were not begun: no reply like it can be made here, or too many are in flight",
    "pairs": "Guided utterances being generated",
    "finished_total": "Utterances that the language model has finished",
    "preempted_pairs_total": "Guidance pairs that the scheduler took off the engine for a while",
    "frames_total": "Frames generated, counted as their chunks leave",
    "unguided_total": "Frames of guided utterances that were sampled without guidance; more than 0 is a bug",
    "frames_unguided_by_policy_total": "Frames sampled without guidance as their utterances' own policies allow",
    "engine_steps_total": "Steps of the engine",
    "engine_busy_seconds_total": "Seconds in which the engine had a step on its way",
    "engine_rows_total": "Rows that the engine has computed: prompt rows, and a row per half and step",
    "preemptions_total": "Requests, halves of pairs among them, that gave way to older ones",
    "dropped_halves_total": "Unconditional halves that adaptive guidance let go under load",
    "restored_halves_total": "Unconditional halves that adaptive guidance took back",
    "step_seconds": "How long the last step took, until its output",
    "running_requests": "Requests in the engine's batch; a pair counts twice",
    "waiting_requests": "Requests that wait for a place in the batch",
    "running_pairs": "Pairs both of whose halves are in the batch",
    "held_pairs": "Pairs one of whose halves waits for the other",
    "kv_usage": "Share of the KV blocks in use",
    "replies_without_words": "Utterances that stand still until more of their text comes",
    "seconds_without_words_total": "Seconds in which utterances stood still for want of text",
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
        self._departures = Departures.from_environment()
        self._thread = ResponseThread()
        self._texts = TextSessions(model)
        self._gauges, self._info = Gauges("language_model", METRICS), BuildInfo()
        loop.start(self._report())

    def accept(self, request: Any) -> None:
        """Take a request over and return at once; its utterance gets an id of our own.

        The client's request id may be empty or duplicated, so it is not used as a key.
        """
        utterance = uuid.uuid4().hex
        caller = Caller(request, self._departures)
        try:
            asked = read_prompt(request, self._seal)
        except Exception as error:
            refuse(caller.sender, error, f"utterance {utterance}")
            return
        responses = Responses(caller, self._thread, self._seal)
        if isinstance(asked, TextPart):
            self._loop.start(self._take(asked, responses))
        elif caller.is_marked:
            self._loop.start(self._end(utterance, responses, Cancelled("the client has gone away")))
        else:
            self._loop.start(self._serve(utterance, asked, responses, caller.host))

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
        responses.send(receipt.to_json(), None)
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
            is_refused = isinstance(failure, InvalidRequest | DecoderRefused | NoPlace)
            self._gauges.add("rejected_total" if is_refused else "failed_total", 1)
            await responses.refuse(failure, f"utterance {utterance}")

    async def _report(self) -> None:
        while True:
            self._gauges.update(self._model.stats())
            await asyncio.sleep(STATS_PERIOD_S)
