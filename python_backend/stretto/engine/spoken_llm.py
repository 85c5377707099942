"""Two models that answer a request together: a writer generates text, and a speaker speaks it as it is written.

    writer    prompt ──►  w0  w1  w2 …  end         its own engine
                     │     │   │   │     │
               states│     ▼   ▼   ▼     ▼          hidden states once, words as they are generated
    speaker          └► prompt w0 ► f0   f1  f2 …   its own engine: one word for each frame

The writer is limited only by its own maximum length. Its text is not delayed by the speech.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractContextManager, aclosing
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from stretto.config import EngineConfig
from stretto.engine.environment import is_cpu_build
from stretto.engine.feeds import TextFeed
from stretto.engine.llm import SpeechLLM, free_id
from stretto.engine.permits import Permit
from stretto.errors import CheckpointError, InvalidRequest, StrettoError
from stretto.families.audio_format import AudioFormat
from stretto.families.base import Family
from stretto.families.plugin import config_at, family_at
from stretto.families.speaker import Speaker, SpeakerPrompts
from stretto.families.text import StreamedText
from stretto.records.chunk import LMChunk, Report, last_chunks
from stretto.records.prompt import Prompt
from stretto.streams.chunking import Pacer

NEVER_S = math.inf  # the writer's pace has no limit: it may wait for its turn in its engine


def launch(config: EngineConfig) -> "SpeechLLM | SpokenLLM":
    """Start the engines of a checkpoint: one model, or a writer and its speaker; see `SpeechLLM.launch`."""
    speaker = family_at(config.checkpoint).mechanism.speaker
    return SpeechLLM.launch(config) if speaker is None else SpokenLLM.launch(config, speaker)


class Script:
    """Reply of a writer on its way to the speaker.

    Attributes:
        states: Hidden states of the writer's prompt, float32 [n, W]; None if there are none, or not yet.
    """

    def __init__(self, spoken: Callable[[Sequence[int]], list[int]], end_of_reply: int, end_id: int):
        self._spoken, self._end_of_reply, self._end_id = spoken, end_of_reply, end_id
        self.states: np.ndarray | None = None
        self._words: list[int] = []
        self._is_complete = False
        self._has_begun = asyncio.Event()
        self._feed: TextFeed | None = None

    def listen(self, states: np.ndarray | None, ids: list[int]) -> None:
        """Take hidden states of the prompt and new ids of the reply over (`SpeechLLM.answer`)."""
        self.states = states if self.states is None else self.states  # states that arrive twice are the same
        self._words += self._spoken([each for each in ids if each != self._end_of_reply])
        if self._words:
            self._has_begun.set()
        self._pass_on()

    def end(self) -> None:
        """Complete the text."""
        self._is_complete = True
        self._has_begun.set()
        self._pass_on()

    async def begin(self) -> list[int]:
        """Wait for the first word, and return it; return nothing if the reply has no words."""
        await self._has_begun.wait()
        first, self._words = self._words[:1], self._words[1:]
        return first

    def feed(self, feed: TextFeed) -> None:
        """Send the words after the first to `feed`, those so far and those to come.

        The speech ends at its length limit, so words beyond it are not sent.
        """
        self._feed = feed
        self._pass_on()

    def _pass_on(self) -> None:
        feed = self._feed
        if feed is None or feed.is_complete:
            return
        words, self._words = self._words[: feed.room], []
        is_last = self._is_complete or feed.room == len(words)
        if words or is_last:
            feed.write([*words, *([self._end_id] if is_last else [])], is_last)


class SpokenLLM:
    """A writer and its speaker, with the interface of `SpeechLLM`.

    Args:
        writer: Model that generates text.
        speaker: Model that speaks it.
        prompts: Prompt writer of the speaker.
        width: Width of the hidden states that the speaker reads.

    Attributes:
        family: Family of the writer.
        parts: Both models, each with engines of its own.
    """

    def __init__(self, writer: SpeechLLM, speaker: SpeechLLM, prompts: SpeakerPrompts, width: int):
        self.parts = self.writer, self.speaker = writer, speaker
        self.family: Family = writer.family
        self.prompts, self._width = prompts, width
        self._spoken = {task.name for task in self.family.tasks if task.is_spoken}

    @classmethod
    def launch(cls, config: EngineConfig, speaker: Speaker) -> "SpokenLLM":
        """Start both models; see `SpeechLLM.launch`.

        On a GPU, the speaker starts after the writer, because vLLM measures the memory that its own start uses.

        Args:
            config: Configuration of the writer's engine, which contains that of the speaker's.
            speaker: Speaker of the writer's family.
        """
        folder = config.checkpoint / speaker.folder
        prompts, width = speaker.open_prompts(folder), states_width(config.checkpoint, folder)
        configs = config, config.of_speaker(folder)
        begin = SpeechLLM.begin if is_cpu_build() else partial(partial, SpeechLLM.launch)
        models, failures = list[SpeechLLM](), list[Exception]()
        for wait in [begin(each) for each in configs]:
            try:
                models.append(wait())
            except Exception as error:
                failures.append(error)
        if not failures:
            return cls(models[0], models[1], prompts, width)
        for model in models:
            model.shutdown()
        raise failures[0]

    async def generate(
        self, prompt: Prompt, request_id: str | None = None, pacer: Pacer | None = None, host: str = ""
    ) -> AsyncGenerator[LMChunk, None]:
        """Yield the chunks of one reply; those with text and those with frames are independent of each other.

        A reply of a task that is not spoken comes from the writer alone. A spoken reply has a place in both models
        until it ends, so it is refused at once if either is full.

        Args:
            prompt: Prompt of the writer. `Prompt.voice` is an index in `Family.voices`.
            request_id: See `SpeechLLM.generate`.
            pacer: Pacer that decides when frames are sent.
            host: Client host.

        Raises:
            InvalidRequest: If the request can never run in one of the models. It is not queued.
            NoCapacity: If too many requests are in flight. This request is not queued.
        """
        if prompt.task not in self._spoken:
            async with aclosing(self.writer.generate(prompt, request_id, pacer, host)) as chunks:
                async for chunk in chunks:
                    yield chunk
            return
        request_id = free_id(request_id, self.writer.active)
        prompt = replace(prompt, sampling=prompt.sampling.with_seed())
        draft = self.speaker.checked(self._draft(prompt))
        writing = self.writer.checked(self._of_writer(prompt))
        with (
            self.writer.place(writing, request_id, host) as permit,
            self.speaker.place(draft, request_id, host) as speaking,
        ):
            reply = _SpokenReply(self, prompt, writing, pacer)
            async with aclosing(reply.chunks(permit, speaking)) as chunks:
                async for chunk in chunks:
                    yield chunk

    def _of_writer(self, prompt: Prompt) -> Prompt:
        """Return the writer's part of a request: without options for audio."""
        defaults, sampling = self.family.task(prompt.task).sampling, prompt.sampling
        own = replace(defaults, text=sampling.text, seed=sampling.seed)
        return replace(prompt, sampling=own, alignment=None, voice=0)

    def of_speaker(self, prompt: Prompt, words: Sequence[int], states: np.ndarray | None) -> Prompt:
        """Return the speaker's part of a request.

        Args:
            prompt: The request.
            words: First ids of the writer's reply.
            states: Hidden states of the writer in the rows of audio input, float32 [n, W]; None if there are none.

        Raises:
            InvalidRequest: If the speaker cannot read the conversation.
        """
        voices = self.family.voices
        if not prompt.voice < len(voices):
            raise InvalidRequest("voice", f"a number in [0, {len(voices) - 1}]", prompt.voice)
        sampling = replace(prompt.sampling, text=self.speaker.family.tasks[0].sampling.text)
        conversation = prompt.rows[:, 0].tolist()
        made = self.prompts.write(conversation, words, voices[prompt.voice], states, sampling, is_open=True)
        return replace(made, delivery=prompt.delivery)

    def _draft(self, prompt: Prompt) -> Prompt:
        """Return a prompt of the speaker's with the size that the reply's will have."""
        num_states = sum(audio.num_rows for audio in prompt.audios)
        states = np.zeros((num_states, self._width), np.float32) if num_states else None
        words = self.prompts.spoken(prompt.rows[-1:, 0].tolist()) or [0]
        return self.of_speaker(prompt, words, states)

    def stats(self) -> dict[str, float]:
        """Return the current metrics of both models.

        They are sums, except the larger share or time of the two, and the number of the writer's replies.
        """
        own, other = self.writer.stats(), self.speaker.stats()
        both = {name: own[name] + other[name] for name in own}
        both |= {name: max(own[name], other[name]) for name in ("step_seconds", "kv_usage")}
        return both | {name: own[name] for name in ("active", "finished_total")}

    def has_work(self) -> bool:
        """Return True if one of the models has; see `SpeechLLM.has_work`."""
        return any(model.has_work() for model in self.parts)

    def shutdown(self) -> None:
        """Stop both engines and their processes."""
        for model in self.parts:
            model.shutdown()

    @property
    def engine_pids(self) -> list[int]:
        """Pids of the engine processes of both models."""
        return [pid for model in self.parts for pid in model.engine_pids]

    def text_stream(self) -> StreamedText:
        """Return the writer's; see `SpeechLLM.text_stream`."""
        return self.writer.text_stream()

    def max_words(self, prompt: Prompt) -> int:
        """Return the writer's; see `SpeechLLM.max_words`."""
        return self.writer.max_words(prompt)

    async def write(self, request_id: str, ids: Sequence[int], is_last: bool = False) -> None:
        """Append to the prompt of the writer; see `SpeechLLM.write`."""
        await self.writer.write(request_id, ids, is_last)

    async def write_frames(
        self, request_id: str, frames: np.ndarray, is_last: bool, seconds: float, max_ahead: int
    ) -> tuple[int, int]:
        """Append to the live audio of the writer; see `SpeechLLM.write_frames`."""
        return await self.writer.write_frames(request_id, frames, is_last, seconds, max_ahead)

    def session_place(self, host: str) -> AbstractContextManager[None]:
        """Reserve a live session of the writer; see `SpeechLLM.session_place`."""
        return self.writer.session_place(host)

    def end_session(self, request_id: str, failure: StrettoError) -> None:
        """End a live session of the writer; see `SpeechLLM.end_session`."""
        self.writer.end_session(request_id, failure)


class _SpokenReply:
    """One reply: two requests, and their chunks in one stream.

    Args:
        models: Both models.
        prompt: The request.
        writing: The writer's part of it, checked.
        pacer: Pacer that decides when frames are sent.
    """

    def __init__(self, models: SpokenLLM, prompt: Prompt, writing: Prompt, pacer: Pacer | None):
        self._models, self._prompt, self._writing, self._pacer = models, prompt, writing, pacer
        track = models.speaker.family.text_track
        assert track is not None, "speakers have a text track"
        self._script = Script(models.prompts.spoken, models.family.end_of_reply, track.end_id)
        self._texts, self._changed = deque[LMChunk](), asyncio.Event()
        self._written: LMChunk | None = None  # last chunk of the writer
        self._num_chunks, self._begun_s = 0, time.perf_counter()
        self._first_frame_s: float | None = None

    async def chunks(self, permit: Permit, speaking: Permit) -> AsyncGenerator[LMChunk, None]:
        """Yield all chunks. Frames are requested from the speaker only after the previous ones have been taken.

        Args:
            permit: The writer's permit.
            speaking: The speaker's permit.
        """
        writer, frames = asyncio.create_task(self._write(permit)), self._speak(speaking)
        newest: asyncio.Task[LMChunk | None] | None = self._next(frames)
        writer.add_done_callback(lambda _: self._changed.set())
        spoken: LMChunk | None = None  # last chunk of the speaker
        try:
            while not (writer.done() and newest is None and not self._texts):
                if writer.done():
                    writer.result()  # raises the writer's error
                if self._texts:
                    yield self._numbered(self._texts.popleft())
                elif newest is not None and newest.done():
                    found = newest.result()
                    if found is not None and not found.chunk.is_final:
                        self._note_frames(permit)
                        yield self._numbered(found)
                    spoken = found or spoken
                    newest = None if found is None else self._next(frames)
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
                task.cancelled() or task.exception()  # read, so that asyncio does not log it

    async def _write(self, permit: Permit) -> None:
        """Generate the text, whether or not its chunks are taken."""
        answer = self._models.writer.answer(self._writing, permit, None, self._script.listen)
        async with aclosing(answer) as chunks:
            async for each in chunks:
                if each.chunk.is_final:
                    self._written = each
                if each.chunk.text or each.chunk.marks:
                    self._texts.append(replace(each, chunk=replace(each.chunk, is_final=False, report=None)))
                    self._changed.set()
        self._script.end()

    async def _speak(self, permit: Permit) -> AsyncGenerator[LMChunk, None]:
        """Yield the speaker's chunks, from the first word on; none if there are no words."""
        first = await self._script.begin()
        if not first:
            return
        speaker = self._models.speaker
        prompt = speaker.checked(self._models.of_speaker(self._prompt, first, self._script.states))
        feed = speaker.open_text(prompt, permit.request_id, patience_s=NEVER_S, longest_s=NEVER_S)
        self._script.feed(feed)
        async with aclosing(speaker.answer(prompt, permit, self._pacer)) as chunks:
            async for chunk in chunks:
                yield chunk

    def _next(self, frames: AsyncGenerator[LMChunk, None]) -> "asyncio.Task[LMChunk | None]":
        async def take() -> LMChunk | None:
            return await anext(frames, None)

        task = asyncio.create_task(take())
        task.add_done_callback(lambda _: self._changed.set())
        return task

    def _note_frames(self, permit: Permit) -> None:
        """On the first frames, record their time for the report and for admission control."""
        if self._first_frame_s is None:
            self._first_frame_s = time.perf_counter() - self._begun_s
            permit.record_first_frame(self._first_frame_s)

    def _numbered(self, item: LMChunk) -> LMChunk:
        """Return the next chunk of the reply."""
        alignment = None if self._num_chunks else self._prompt.alignment
        index, self._num_chunks = self._num_chunks, self._num_chunks + 1
        return replace(item, chunk=replace(item.chunk, index=index, voice=0, alignment=alignment))

    def _last(self, spoken: LMChunk | None) -> LMChunk:
        """Return the last chunk, with one report for both models.

        Args:
            spoken: Last chunk of the speaker; None if the reply has no words.
        """
        assert self._written is not None
        own = self._written.chunk.report
        assert own is not None
        if spoken is None:
            report = replace(own, total_s=time.perf_counter() - self._begun_s)
            return self._numbered(replace(self._written, chunk=replace(self._written.chunk, text="", report=report)))
        return self._numbered(replace(spoken, chunk=replace(spoken.chunk, report=self._joined(own, spoken))))

    def _joined(self, own: Report, spoken: LMChunk) -> Report:
        other = spoken.chunk.report
        assert other is not None
        is_cut = "length" in (own.finish_reason, other.finish_reason)
        total_s = time.perf_counter() - self._begun_s
        return replace(
            other,
            finish_reason="length" if is_cut else "stop",
            num_prompt_rows=own.num_prompt_rows,
            num_text_tokens=own.num_text_tokens,
            queue_s=own.queue_s + other.queue_s,
            first_frame_s=self._first_frame_s or (total_s if other.num_frames else None),
            total_s=total_s,
            input_audio_s=own.input_audio_s,
        )


def states_width(writer: Path, speaker: Path) -> int:
    """Return the width of the hidden states that a speaker reads.

    Args:
        writer: Checkpoint folder of the writer.
        speaker: Checkpoint folder of the speaker.

    Raises:
        CheckpointError: If the speaker does not read states, or the writer is not as wide.
    """
    audio_format, width = AudioFormat.from_config(config_at(speaker)), config_at(writer).get("hidden_size")
    found = None if audio_format is None else audio_format.feature_size
    if found is None or found != width:
        raise CheckpointError(f"{speaker}: expected a speaker of hidden states of width {width}, got {found}")
    return found
