"""Two models that answer a request together: a writer generates text, and a speaker speaks it as it is written.

    writer    prompt ──►  w0  w1  w2 …  end         its own engine
                     │     │   │   │     │
               states│     ▼   ▼   ▼     ▼          hidden states once, words as they are generated
    speaker          └► prompt w0 ► f0   f1  f2 …   its own engine: one word for each frame

The writer is limited only by its own maximum length. Its text is not delayed by the speech.
"""

from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, aclosing
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from stretto.config import EngineConfig
from stretto.engine.environment import is_cpu_build
from stretto.engine.llm import SpeechLLM, StartingLLM, free_id
from stretto.errors import CheckpointError, InvalidRequest, StrettoError
from stretto.family.audio_format import AudioFormat
from stretto.family.base import Family
from stretto.family.plugin import config_at, family_at
from stretto.family.text import StreamedText
from stretto.records.chunk import LMChunk
from stretto.records.prompt import Prompt
from stretto.streams.chunking import Pacer
from stretto_qwen3_omni.qwen3_omni.family import Talker
from stretto_qwen3_omni.qwen3_omni.mechanism.pending_text import PendingText
from stretto_qwen3_omni.qwen3_omni.mechanism.spoken_reply import SpokenReply
from stretto_qwen3_omni.qwen3_omni_talker.prompt import TalkerPrompts


class SpokenLLM:
    """A writer and its speaker, with the interface of `SpeechLLM`. The speaker reads hidden states of `width`."""

    def __init__(self, writer: SpeechLLM, speaker: SpeechLLM, prompts: TalkerPrompts, width: int):
        self.parts = self.writer, self.speaker = writer, speaker
        self.family: Family = writer.family
        self.adapters = writer.adapters
        self.prompts = prompts
        self._width = width
        track = speaker.family.text_track
        assert track is not None, "speakers have a text track"
        self._end_of_text = track.end_id
        self._spoken = {task.name for task in self.family.tasks if task.speaks}

    @classmethod
    def launch(cls, talker: Talker, config: EngineConfig) -> "SpokenLLM":
        """Start both models; if one does not start, stop the other. The writer's `config` contains the speaker's."""
        folder = config.checkpoint / talker.folder
        prompts = TalkerPrompts.at(folder)
        width = states_width(config.checkpoint, folder)
        family = family_at(config.checkpoint)
        prompts.check_writer(family.layout.vocab_size, family.voices)
        with ExitStack() as failed:
            begun: Iterable[StartingLLM] = _begun((config, config.speaker_config(folder)), failed)
            if is_cpu_build():
                begun = list(begun)  # on a GPU, one after the other: vLLM measures the memory that its own start uses
            writer, speaking = [starting.wait() for starting in begun]
            failed.pop_all()
        return cls(writer, speaking, prompts, width)

    async def generate(
        self, prompt: Prompt, request_id: str | None = None, pacer: Pacer | None = None, host: str = ""
    ) -> AsyncGenerator[LMChunk, None]:
        """Yield the chunks of one reply. Chunks with text and chunks with frames are independent of each other.

        If the task is not spoken, only the writer replies. A spoken reply needs a permit of both models until it ends,
        so it is refused at once if either is full.

        Args:
            prompt: Prompt of the writer. `Prompt.voice` is an index in `Family.voices`.

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
        writing = self.writer.prepare(self._writer_prompt(prompt))
        sized = self.speaker.prepare(self._sized(prompt))
        with (
            self.writer.place(writing, request_id, host) as permit,
            self.speaker.place(sized, request_id, host) as speaking,
        ):
            text = PendingText(self.prompts.spoken, self.family.end_of_reply, self._end_of_text)
            speak = partial(self._speaker_prompt, prompt)
            reply = SpokenReply(self.writer, self.speaker, prompt, writing, speak, text, pacer)
            async with aclosing(reply.chunks(permit, speaking)) as chunks:
                async for chunk in chunks:
                    yield chunk

    def _writer_prompt(self, prompt: Prompt) -> Prompt:
        """Return the writer's part of a request, without options for audio."""
        defaults = self.family.task(prompt.task).sampling
        sampling = prompt.sampling
        of_writer = replace(defaults, text=sampling.text, seed=sampling.seed)
        return replace(prompt, sampling=of_writer, alignment=None, voice=0)

    def _speaker_prompt(self, prompt: Prompt, words: Sequence[int], states: np.ndarray | None) -> Prompt:
        """Return the speaker's part of a request; raise InvalidRequest if it cannot read the conversation.

        Args:
            states: The writer's hidden states in rows of audio input and images, float32 [n, W]; None if there are
                none.
        """
        voices = self.family.voices
        if prompt.voice not in range(len(voices)):
            raise InvalidRequest("voice", f"a number in [0, {len(voices) - 1}]", prompt.voice)
        sampling = replace(prompt.sampling, text=self.speaker.family.tasks[0].sampling.text)
        conversation = prompt.rows[:, 0]
        grids = [(image.height, image.width) for image in prompt.images]
        spoken = self.prompts.write(
            conversation, words, voices[prompt.voice], states, sampling, is_open=True, grids=grids
        )
        return replace(spoken, delivery=prompt.delivery)

    def _sized(self, prompt: Prompt) -> Prompt:
        """Return a stand-in for the speaker's prompt, with its size and options.

        The speaker's prompt needs the first word and hidden states of the writer. The stand-in exists before the writer
        begins, so that a request that the speaker cannot take is refused at once. It has an id of the conversation as
        the word, and zeros, which take no memory, as the states.
        """
        num_states = sum(model_input.num_rows for model_input in prompt.inputs)
        zeros = np.broadcast_to(np.zeros((), np.float32), (num_states, self._width))
        states = zeros if num_states else None
        words = self.prompts.spoken(prompt.rows[-1:, 0].tolist()) or [0]
        return self._speaker_prompt(prompt, words, states)

    def stats(self) -> dict[str, float]:
        """Return the current metrics of both models, keyed by name.

        Each is the sum of both models' metrics, with two exceptions. `step_seconds` and `kv_usage` are those of the
        model with the larger value. `active` and `finished_total` are the writer's, because a spoken reply is a request
        to each model.
        """
        of_writer = self.writer.stats()
        other = self.speaker.stats()
        both = {name: of_writer[name] + other[name] for name in of_writer}
        both |= {name: max(of_writer[name], other[name]) for name in ("step_seconds", "kv_usage")}
        return both | {name: of_writer[name] for name in ("active", "finished_total")}

    def has_work(self) -> bool:
        """Return True if one of the models has work."""
        return any(model.has_work() for model in self.parts)

    def shutdown(self) -> None:
        for model in self.parts:
            model.shutdown()

    @property
    def engine_pids(self) -> list[int]:
        return [pid for model in self.parts for pid in model.engine_pids]

    def text_stream(self) -> StreamedText:
        return self.writer.text_stream()

    def max_words(self, prompt: Prompt) -> int:
        return self.writer.max_words(prompt)

    async def write(self, request_id: str, ids: Sequence[int], is_last: bool = False) -> None:
        """Append to the prompt of the writer (`SpeechLLM.write`)."""
        await self.writer.write(request_id, ids, is_last)

    async def write_frames(
        self, request_id: str, frames: np.ndarray, is_last: bool, seconds: float, max_ahead: int
    ) -> tuple[int, int]:
        """Append to the live audio of the writer (`SpeechLLM.write_frames`)."""
        return await self.writer.write_frames(request_id, frames, is_last, seconds, max_ahead)

    def session_place(self, host: str) -> AbstractContextManager[None]:
        """Reserve a live session of the writer (`SpeechLLM.session_place`)."""
        return self.writer.session_place(host)

    def end_session(self, request_id: str, failure: StrettoError) -> None:
        """End a live session of the writer (`SpeechLLM.end_session`)."""
        self.writer.end_session(request_id, failure)


def _begun(configs: Iterable[EngineConfig], failed: ExitStack) -> Iterator[StartingLLM]:
    """Start an engine for each configuration without waiting, and yield it. Closing `failed` stops the engines."""
    for config in configs:
        starting = StartingLLM(config)
        failed.callback(starting.stop)
        yield starting


def states_width(writer: Path, speaker: Path) -> int:
    """Return the width of the hidden states that a speaker reads; raise CheckpointError if it is not the writer's."""
    audio_format = AudioFormat.from_config(config_at(speaker))
    width = config_at(writer).get("hidden_size")
    feature_size = None if audio_format is None else audio_format.feature_size
    if feature_size is None or feature_size != width:
        raise CheckpointError(f"{speaker}: expected a speaker of hidden states of width {width}, got {feature_size}")
    return feature_size
