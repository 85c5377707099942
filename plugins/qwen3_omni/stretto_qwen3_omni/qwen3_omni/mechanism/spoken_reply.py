"""One reply of two models: a writer's text, and the speech of a speaker that reads it as it is written."""

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace

import numpy as np

from stretto.engine.llm import SpeechLLM
from stretto.engine.permits import Permit
from stretto.records.chunk import LMChunk, Report, last_chunks
from stretto.records.prompt import Prompt
from stretto.streams.chunking import Pacer
from stretto_qwen3_omni.qwen3_omni.mechanism.pending_text import PendingText

NEVER_S = math.inf  # no limit for the writer, which may wait for its turn in its engine


class SpokenReply:
    """One reply of a writer and its speaker: two requests, whose chunks form one stream.

    Args:
        writing: The writer's request, a result of `SpeechLLM.prepare`.
        speaking: Function that returns the speaker's prompt for the first words of the text and the writer's hidden
            states, or None for no states.
    """

    def __init__(
        self,
        writer: SpeechLLM,
        speaker: SpeechLLM,
        prompt: Prompt,
        writing: Prompt,
        speaking: Callable[[Sequence[int], np.ndarray | None], Prompt],
        text: PendingText,
        pacer: Pacer | None,
    ):
        self._writer = writer
        self._speaker = speaker
        self._text = text
        self._prompt = prompt
        self._writing = writing
        self._speaking = speaking
        self._pacer = pacer
        self._written_chunks = deque[LMChunk]()
        self._changed = asyncio.Event()
        self._last_written: LMChunk | None = None  # last chunk of the writer
        self._num_chunks = 0
        self._begun_s = time.perf_counter()
        self._first_frame_s: float | None = None

    async def chunks(self, permit: Permit, speaking: Permit) -> AsyncGenerator[LMChunk, None]:
        """Yield all chunks, given both permits. Frames are requested only after the previous ones have been taken."""
        writer = asyncio.create_task(self._write(permit))
        frames = self._speak(speaking)
        newest: asyncio.Task[LMChunk | None] | None = self._next(frames)
        writer.add_done_callback(lambda _: self._changed.set())
        spoken: LMChunk | None = None  # last chunk of the speaker
        try:
            while not (writer.done() and newest is None and not self._written_chunks):
                if writer.done():
                    writer.result()  # raises the writer's error
                if self._written_chunks:
                    yield self._numbered(self._written_chunks.popleft())
                elif newest is not None and newest.done():
                    chunk_of_speaker = newest.result()
                    if chunk_of_speaker is not None and not chunk_of_speaker.chunk.is_final:
                        self._note_frames(permit)
                        yield self._numbered(chunk_of_speaker)
                    spoken = chunk_of_speaker or spoken
                    newest = None if chunk_of_speaker is None else self._next(frames)
                else:
                    self._changed.clear()
                    await self._changed.wait()
            writer.result()
            last = self._last(spoken)
            for chunk in last_chunks(last) if self._prompt.alignment else [last]:
                yield chunk
        finally:
            tasks = [writer] if newest is None else [writer, newest]
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await frames.aclose()
            for task in tasks:
                task.cancelled() or task.exception()  # retrieved, so that asyncio does not log the exception

    async def _write(self, permit: Permit) -> None:
        """Generate the text, even if its chunks are not taken."""
        written = self._writer.reply_chunks(self._writing, permit, None, self._text.listen)
        async with aclosing(written) as chunks:
            async for chunk in chunks:
                if chunk.chunk.is_final:
                    self._last_written = chunk
                if chunk.chunk.text or chunk.chunk.marks:
                    self._written_chunks.append(replace(chunk, chunk=replace(chunk.chunk, is_final=False, report=None)))
                    self._changed.set()
        self._text.end()

    async def _speak(self, permit: Permit) -> AsyncGenerator[LMChunk, None]:
        """Yield the speaker's chunks, from the first word on; none if there are no words."""
        first, states = await self._text.begin()
        if not first:
            return
        prompt = self._speaker.prepare(self._speaking(first, states))
        del states
        feed = self._speaker.open_text(prompt, permit.request_id, patience_s=NEVER_S, longest_s=NEVER_S)
        self._text.feed(feed)
        frames = self._speaker.reply_chunks(prompt, permit, self._pacer)
        del prompt  # with the states, which `reply_chunks` drops when they have been sent
        async with aclosing(frames) as chunks:
            async for chunk in chunks:
                yield chunk

    def _next(self, frames: AsyncGenerator[LMChunk, None]) -> "asyncio.Task[LMChunk | None]":
        async def take() -> LMChunk | None:
            chunk = await anext(frames, None)
            if chunk is not None and chunk.codes is not None and self._pacer is not None:
                await self._pacer.wait_for_turn()  # begun here, so that text is sent in the meantime
            return chunk

        task = asyncio.create_task(take())
        task.add_done_callback(lambda _: self._changed.set())
        return task

    def _note_frames(self, permit: Permit) -> None:
        """On the first frames, record their time for the report and for admission control."""
        if self._first_frame_s is None:
            self._first_frame_s = time.perf_counter() - self._begun_s
            permit.record_first_frame(self._first_frame_s)

    def _numbered(self, item: LMChunk) -> LMChunk:
        """Return `item` with the number that its chunk has in the reply."""
        alignment = None if self._num_chunks else self._prompt.alignment
        index = self._num_chunks
        self._num_chunks = self._num_chunks + 1
        return replace(item, chunk=replace(item.chunk, index=index, voice=0, alignment=alignment))

    def _last(self, spoken: LMChunk | None) -> LMChunk:
        """Return the last chunk, with one report for both models. `spoken` is None if the reply has no words."""
        assert self._last_written is not None
        written = self._last_written.chunk.report
        assert written is not None
        if spoken is None:
            report = replace(written, total_s=time.perf_counter() - self._begun_s)
            return self._numbered(
                replace(self._last_written, chunk=replace(self._last_written.chunk, text="", report=report))
            )
        return self._numbered(replace(spoken, chunk=replace(spoken.chunk, report=self._joined(written, spoken))))

    def _joined(self, written: Report, spoken: LMChunk) -> Report:
        other = spoken.chunk.report
        assert other is not None
        limit = other.finish_reason if written.finish_reason == "stop" else written.finish_reason
        total_s = time.perf_counter() - self._begun_s
        return replace(
            other,
            finish_reason=limit,
            num_prompt_rows=written.num_prompt_rows,
            num_text_tokens=written.num_text_tokens,
            queue_s=written.queue_s + other.queue_s,
            first_frame_s=self._first_frame_s or (total_s if other.num_frames else None),
            total_s=total_s,
            input_audio_s=written.input_audio_s,
        )
