"""A writer and its speaker answer as one model, Qwen3-Omni: replies equal those of transformers' whole model."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import pytest_asyncio

from plugins.qwen3_omni.tests.published_qwen3_omni_thinker import Processor, Written, conversations, convert, sights
from plugins.qwen3_omni.tests.published_qwen3_omni_whole import Whole
from stretto.config import EngineConfig
from stretto.engine.client import _Request
from stretto.engine.llm import SpeechLLM, launch
from stretto.engine.permits import Permits
from stretto.errors import CheckpointError, InvalidRequest, NoCapacity, StrettoError
from stretto.family.plugin import family_at
from stretto.family.served import served_family
from stretto.records.chunk import Alignment, LMChunk, Report
from stretto.records.prompt import Prompt
from stretto.records.sampling import CodeSampling, SamplingConfig
from stretto.streams.chunking import Pacer
from stretto.streams.layout import Segment
from stretto_qwen3_omni.qwen3_omni.mechanism import spoken_llm as module
from stretto_qwen3_omni.qwen3_omni.mechanism.pending_text import PendingText
from stretto_qwen3_omni.qwen3_omni.mechanism.spoken_llm import SpokenLLM
from stretto_qwen3_omni.qwen3_omni.mechanism.spoken_reply import SpokenReply
from tests.engine.forking import forked_processes, stopped
from tests.engine.harness import DEFAULTS
from tests.patience import until_async

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module")]
LENGTH, NUM_WORDS, NUM_FRAMES = 160, 20, 28
# Of 14 replies, 4 in a batch, with prompts in chunks, and room for hardly one of the longest.
TIGHT: dict[str, Any] = {
    "max_model_len": LENGTH,
    "max_num_batched_tokens": 24,
    "max_num_seqs": 4,
    "num_gpu_blocks_override": 6,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(tmp_path_factory.mktemp("whole"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def llm(checkpoint: Path) -> AsyncIterator[SpokenLLM]:
    with forked_processes():
        running = launch(EngineConfig(checkpoint, {**DEFAULTS, **TIGHT}, speaker=DEFAULTS | TIGHT))
    assert isinstance(running, SpokenLLM)
    yield running
    running.shutdown()


class Maker(NamedTuple):
    """Requests for a checkpoint."""

    checkpoint: Path

    def prompt(self, name: str, voice: int = 0, task: str = "dialogue", **sampling: Any) -> Prompt:
        """Return a greedy request for the reply to a conversation."""
        made = Written(self.checkpoint).rows((conversations() | sights())[name])
        defaults = served_family(self.checkpoint).task(task).sampling
        text = replace(defaults.text, max_rows=NUM_WORDS)
        audio = replace(defaults.audio, temperature=0.0, max_rows=NUM_FRAMES)
        given = {"text": text, "audio": audio, "depth": CodeSampling(0.0), "seed": 0} | sampling
        sampling = replace(defaults, **given)
        return Prompt(task, made.rows, sampling, audios=made.audios, images=made.images, voice=voice)

    def drawn(self, name: str, seed: int) -> Prompt:
        """Return a request with sampling in both models."""
        made = self.prompt(name, seed % 2)
        text = replace(made.sampling.text, temperature=0.8, top_k=20)
        audio = replace(made.sampling.audio, temperature=0.9, top_k=10)
        return replace(made, sampling=replace(made.sampling, text=text, audio=audio, depth=None, seed=seed))


@pytest.fixture(scope="module")
def maker(checkpoint: Path) -> Maker:
    return Maker(checkpoint)


class Reply(NamedTuple):
    """Reply of both models: words, codes [K, T], text and chunks."""

    words: list[int]
    codes: np.ndarray
    text: str
    chunks: list[LMChunk]

    @property
    def report(self) -> Report:
        """The reply's report."""
        assert self.chunks[-1].chunk.report is not None
        return self.chunks[-1].chunk.report


async def answer(llm: SpokenLLM, prompt: Prompt, monkeypatch: pytest.MonkeyPatch | None = None) -> Reply:
    """Return the reply to a request."""
    words, chunks = list[int](), list[LMChunk]()
    listen = PendingText.listen
    if monkeypatch is not None:

        def heard(self: PendingText, states: np.ndarray | None, ids: list[int]) -> None:
            words.extend(each for each in ids if each != llm.family.end_of_reply)
            listen(self, states, ids)

        monkeypatch.setattr(PendingText, "listen", heard)
    async with aclosing(llm.generate(prompt)) as generated:
        chunks = [each async for each in generated]
    if monkeypatch is not None:
        monkeypatch.setattr(PendingText, "listen", listen)
    assert [each.chunk.index for each in chunks] == list(range(len(chunks)))
    assert [each.chunk.is_final for each in chunks] == [False] * (len(chunks) - 1) + [True]
    assert not any(each.chunk.voice for each in chunks), "the codec has no voices"
    codes = [each.codes for each in chunks if each.codes is not None]
    joined = np.concatenate([np.zeros((4, 0), np.int32), *codes], 1)
    return Reply(words, joined, "".join(each.chunk.text for each in chunks), chunks)


@pytest.fixture(scope="module")
def expected(checkpoint: Path) -> Callable[[str, str], tuple[list[int], np.ndarray]]:
    """Function that returns transformers' words and codes for a conversation and a voice."""
    whole, processor = Whole(checkpoint.parent / "release"), Processor(checkpoint)

    @cache
    def reply(name: str, voice: str) -> tuple[list[int], np.ndarray]:
        return whole.reply(processor.inputs(conversations()[name]), voice, NUM_WORDS, NUM_FRAMES)

    return reply


async def test_greedy_replies_match_transformers(
    llm: SpokenLLM,
    maker: Maker,
    expected: Callable[[str, str], tuple[list[int], np.ndarray]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Text and audio in, words and codes out; alone, and all at once, with preemptions in both models."""
    alone = {}
    for index, name in enumerate(conversations()):
        reply = await answer(llm, maker.prompt(name, index % 2), monkeypatch)
        words, codes = expected(name, llm.family.voices[index % 2])
        assert reply.words == words, name
        assert np.array_equal(reply.codes, codes), name
        assert reply.report.num_frames == codes.shape[1]
        assert reply.report.num_text_tokens == len(words)
        alone[name] = reply
    assert len({reply.codes.tobytes() for reply in alone.values()}) == len(alone)
    before = [part.stats()["preemptions_total"] for part in llm.parts]
    names, prompts = [*alone] * 2, [maker.prompt(name, index % 2) for index, name in enumerate(alone)] * 2
    with stopped(llm.speaker):
        with stopped(llm.writer):
            replies = [asyncio.create_task(answer(llm, prompt)) for prompt in prompts]
            await until_async(lambda: llm.writer._engine.num_requests == len(replies))
        await until_async(lambda: [part._engine.num_requests for part in llm.parts] == [0, len(replies)])
    for name, reply in zip(names, await asyncio.gather(*replies), strict=True):
        assert (reply.text, reply.codes.tolist()) == (alone[name].text, alone[name].codes.tolist()), name
    await assert_idle(llm)
    assert all(part.stats()["preemptions_total"] > num for part, num in zip(llm.parts, before, strict=True))


def is_idle(model: SpeechLLM) -> bool:
    """Return True if the engine has reported that it has no requests."""
    stats = model.stats()
    return not stats["running_requests"] + stats["waiting_requests"]


async def assert_idle(llm: SpokenLLM) -> None:
    """Assert that neither model has a request."""
    for part in llm.parts:
        assert part._engine.num_requests == 0
        assert not {*part.active, *part._texts, *part._permits._permits}
        await until_async(partial(is_idle, part))


async def test_same_seed_gives_the_same_reply(llm: SpokenLLM, maker: Maker) -> None:
    """Sampled replies do not depend on the batch, on preemptions or on their order."""
    prompts = [maker.drawn(name, seed) for seed in (7, 8) for name in ("text", "audio", "turns")]
    alone = [await answer(llm, prompt) for prompt in prompts]
    at_once = await asyncio.gather(*(answer(llm, prompt) for prompt in reversed(prompts)))
    for first, second in zip(alone, reversed(at_once), strict=True):
        assert (first.text, first.codes.tolist()) == (second.text, second.codes.tolist())
    assert len({reply.codes.tobytes() for reply in alone}) == len(alone)


async def test_text_does_not_wait_for_speech(llm: SpokenLLM, maker: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """All text arrives although the speaker never answers."""
    expected = await answer(llm, maker.prompt("text"))

    async def silent(self: Any, permit: Any) -> AsyncIterator[LMChunk]:
        await asyncio.Event().wait()
        yield LMChunk(expected.chunks[0].chunk, None)

    monkeypatch.setattr(SpokenReply, "_speak", silent)
    text = ""
    async with aclosing(llm.generate(maker.prompt("text"))) as chunks:
        async for each in chunks:
            text += each.chunk.text
            if text == expected.text:
                break
    await assert_idle(llm)


async def test_text_does_not_wait_for_playback(llm: SpokenLLM, maker: Maker) -> None:
    """All text arrives although the player takes no frames."""
    expected = await answer(llm, maker.prompt("text"))

    async def never() -> None:
        await asyncio.Event().wait()

    prompt, text = maker.prompt("text"), ""
    pacer = Pacer(prompt.delivery.chunking, wait_for_turn=never)
    async with aclosing(llm.generate(prompt, pacer=pacer)) as chunks:
        async for each in chunks:
            assert each.codes is None
            text += each.chunk.text
            if text == expected.text:
                break
    await assert_idle(llm)


async def test_text_replies_leave_the_speaker_alone(llm: SpokenLLM, maker: Maker) -> None:
    spoken = await answer(llm, maker.prompt("audio, text"))
    before = llm.speaker.stats()["engine_rows_total"]
    reply = await answer(llm, maker.prompt("audio, text", task="chat", depth=None, repetition_penalty=1.0))
    assert reply.text == spoken.text
    assert reply.codes.shape == (4, 0)
    assert llm.speaker.stats()["engine_rows_total"] == before


@pytest.mark.parametrize("last", ["nothing", "text", "frames"])
async def test_closing_a_reply_ends_both_requests(llm: SpokenLLM, maker: Maker, last: str) -> None:
    """The number of chunks depends on how fast they are taken, so the reply is closed after the first of a kind."""
    chunks = llm.generate(maker.prompt("turns"))
    if last == "nothing":
        begun = asyncio.create_task(anext(chunks))
        await asyncio.sleep(0.01)
        begun.cancel()
        await asyncio.wait([begun])
    else:
        async for each in chunks:
            if each.chunk.text if last == "text" else each.codes is not None:
                break
        else:
            pytest.fail(f"the reply has no {last}")
    await chunks.aclose()
    await assert_idle(llm)


@pytest.mark.parametrize("index", [0, 1], ids=["writer", "speaker"])
async def test_failure_of_one_model_ends_the_reply(
    llm: SpokenLLM, maker: Maker, index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model fails at its third output, however fast outputs are read. Other replies continue."""
    num_outputs, push, engine = 0, _Request.push, llm.parts[index]._engine

    def fail_third(request: _Request, *output: Any) -> None:
        nonlocal num_outputs
        if engine._requests.get(engine._ids.get("failing", "")) is request:
            num_outputs += 1
            if num_outputs == 3:
                request.fail(StrettoError("it has failed"))
        push(request, *output)

    monkeypatch.setattr(_Request, "push", fail_third)
    other = asyncio.create_task(answer(llm, maker.prompt("text")))
    with pytest.raises(StrettoError, match="it has failed"):
        async for _ in llm.generate(maker.prompt("turns"), "failing"):
            pass
    assert (await other).codes.shape[1] > 0
    await assert_idle(llm)


async def test_speech_ends_at_its_limit_and_text_at_its_own(llm: SpokenLLM, maker: Maker) -> None:
    whole = await answer(llm, maker.prompt("text"))
    audio = replace(maker.prompt("text").sampling.audio, max_rows=6)
    short = await answer(llm, maker.prompt("text", audio=audio))
    assert short.text == whole.text
    assert np.array_equal(short.codes, whole.codes[:, :6])
    assert (short.report.finish_reason, short.report.num_frames) == ("length", 6)


async def test_reply_without_words_is_silent(llm: SpokenLLM, maker: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The speaker is not asked if the writer's reply has no words that can be spoken."""
    monkeypatch.setattr(llm.prompts, "spoken", lambda words: [])
    reply = await answer(llm, maker.prompt("text"))
    assert reply.text
    assert reply.codes.shape == (4, 0)
    assert (reply.report.num_frames, reply.report.first_frame_s) == (0, None)
    await assert_idle(llm)


async def test_word_times_are_requested_with_the_first_chunk(llm: SpokenLLM, maker: Maker) -> None:
    """The last frames come before the final chunk, so that samples do not wait for the aligner."""
    reply = await answer(llm, replace(maker.prompt("text"), alignment=Alignment()))
    assert [each.chunk.alignment is not None for each in reply.chunks[:3]] == [True, False, False]
    assert reply.chunks[-2].chunk.ends_audio
    assert reply.chunks[-1].codes is None
    assert [each.chunk.index for each in reply.chunks] == list(range(len(reply.chunks)))


async def test_requests_that_cannot_be_spoken_are_refused_before_the_writer_begins(
    llm: SpokenLLM, maker: Maker
) -> None:
    good = maker.prompt("audio")
    audio = replace(good.sampling.audio, max_rows=NUM_FRAMES)
    bad = {
        r"voice: expected a number in \[0, 1\], got 2": replace(good, voice=2),
        r"voice: expected a number in \[0, 1\], got -1": replace(good, voice=-1),
        r"options.audio.temperature": replace(good, sampling=_with(good, replace(audio, temperature=-1.0))),
        r"options.text.temperature": maker.prompt("audio", text=replace(good.sampling.text, temperature=-1.0)),
        r"audios\[0\]": replace(good, audios=(replace(good.audios[0], features=np.zeros((31, 5), np.float32)),)),
        r"task": replace(good, task="sing"),
    }
    before = [part.stats()["engine_steps_total"] for part in llm.parts]
    for message, prompt in bad.items():
        with pytest.raises(InvalidRequest, match=f"^{message}"):
            await answer(llm, prompt)
    assert [part.stats()["engine_steps_total"] for part in llm.parts] == before
    await assert_idle(llm)


def _with(prompt: Prompt, audio: Any) -> SamplingConfig:
    return replace(prompt.sampling, audio=audio)


async def test_reply_is_refused_if_either_model_is_full(
    llm: SpokenLLM, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in llm.parts:
        with monkeypatch.context() as patch:
            patch.setattr(part, "_permits", Permits(1, 0, lambda _: True, lambda: 0))
            with (
                part._permits.acquire("other", 1),
                pytest.raises(NoCapacity, match="1 sequences are already in flight"),
            ):
                await answer(llm, maker.prompt("text"))
    await assert_idle(llm)


async def test_stats_and_processes_of_both_models_are_reported(llm: SpokenLLM, maker: Maker) -> None:
    before = llm.stats()
    await answer(llm, maker.prompt("text"))
    after = llm.stats()
    assert after["finished_total"] - before["finished_total"] == 1
    assert after["frames_total"] - before["frames_total"] == NUM_FRAMES
    assert after["engine_steps_total"] - before["engine_steps_total"] >= NUM_WORDS + NUM_FRAMES
    assert len(set(llm.engine_pids)) == 2
    assert not llm.has_work()


async def test_text_and_frames_have_their_own_segments(llm: SpokenLLM, maker: Maker) -> None:
    reply = await answer(llm, maker.prompt("system"))
    for each in reply.chunks[:-1]:
        assert each.chunk.segment is (Segment.TEXT if each.codes is None else Segment.AUDIO)
        assert bool(each.chunk.text) == (each.codes is None)


class Feed:
    """Text of a speaker with room for 4 words."""

    def __init__(self) -> None:
        self.written, self.room, self.is_complete = list[tuple[list[int], bool]](), 4, False

    def write(self, ids: list[int], is_last: bool) -> None:
        self.written.append((ids, is_last))
        self.room -= len(ids) - is_last
        self.is_complete = is_last


def pending() -> tuple[PendingText, Any]:
    return PendingText(lambda words: [word for word in words if word < 90], end_of_reply=99, end_id=98), Feed()


async def test_pending_text_passes_words_until_the_speech_is_full() -> None:
    """Ids that structure a text are not words, and words that no frame can read are not sent."""
    text, feed = pending()
    text.listen(None, [91, 1, 2])
    assert await text.begin() == ([1], None)
    text.feed(feed)
    text.listen(None, [3])
    text.listen(None, [99])
    text.end()
    assert feed.written == [([2], False), ([3], False), ([98], True)]
    text, feed = pending()
    text.listen(None, [1, 2, 3])
    assert (await text.begin())[0] == [1]
    text.feed(feed)
    text.listen(None, [4, 5, 6, 7])
    text.listen(None, [8])
    text.end()
    assert feed.written == [([2, 3], False), ([4, 5, 98], True)]
    text, feed = pending()
    text.end()
    assert await text.begin() == ([], None)


async def test_pending_text_hands_the_states_over_once() -> None:
    text, _ = pending()
    states = np.zeros((1, 2), np.float32)
    text.listen(states, [])
    text.listen(states + 0, [])  # again, after a preemption
    text.listen(None, [1])
    text.listen(states, [2])  # and after the first word
    first, found = await text.begin()
    assert first == [1]
    assert found is not None
    assert np.array_equal(found, states)
    assert (await text.begin())[1] is None


async def test_speaker_of_another_width_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    wide = tmp_path / "wide"
    wide.mkdir()
    (wide / "config.json").write_text(
        (checkpoint / "config.json").read_text().replace('"hidden_size": 96', '"hidden_size": 128')
    )
    with pytest.raises(CheckpointError, match="expected a speaker of hidden states of width 128, got 96"):
        module.states_width(wide, checkpoint / "talker")


async def test_models_without_a_speaker_are_launched_alone(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SpeechLLM, "launch", lambda config: config.checkpoint)
    assert launch(EngineConfig(checkpoint / "talker")) == checkpoint / "talker"


async def test_speaker_with_other_ids_or_voices_is_refused(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is started."""
    monkeypatch.setattr(module, "StartingLLM", None)
    family = family_at(checkpoint)
    num_ids = family.layout.vocab_size
    for changes, message in (
        ({"layout": replace(family.layout, vocab_size=num_ids + 1)}, f"num_text_ids {num_ids + 1}, .* got {num_ids}$"),
        ({"voices": ("ethan", "nobody")}, "expected the thinker's voice 'nobody' in speakers, got "),
    ):
        odd = replace(family, **changes)
        monkeypatch.setattr(module, "family_at", lambda _, found=odd: found)
        with pytest.raises(CheckpointError, match=message):
            launch(EngineConfig(checkpoint))


@pytest.mark.parametrize("is_on_cpu", [True, False])
@pytest.mark.parametrize("failing", ["writer begins", "speaker begins", "writer waits", "speaker waits"])
async def test_failed_start_leaves_no_engine(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, failing: str, is_on_cpu: bool
) -> None:
    """On a GPU, the speaker does not begin before the writer is ready."""
    steps = list[str]()

    class Starting:
        def __init__(self, config: EngineConfig):
            self.name = "speaker" if config.checkpoint.name == "talker" else "writer"
            self.note("begins")

        def note(self, step: str) -> None:
            steps.append(f"{self.name} {step}")
            if steps[-1] == failing:
                raise StrettoError(failing)

        def wait(self) -> None:
            self.note("waits")

        def stop(self) -> None:
            self.note("stops")

    monkeypatch.setattr(module, "StartingLLM", Starting)
    monkeypatch.setattr(module, "is_cpu_build", lambda: is_on_cpu)
    with pytest.raises(StrettoError, match=failing):
        launch(EngineConfig(checkpoint))
    begun = {step.split()[0] for step in steps if step.endswith("begins") and step != failing}
    assert {step.split()[0] for step in steps if step.endswith("stops")} == begun
    if failing == "writer waits":
        assert ("speaker begins" in steps) == is_on_cpu
