"""`SpeechLLM` with the engine in its own process: chunks, reports, aborts and refusals."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import pytest_asyncio

from stretto.config import EngineConfig
from stretto.engine.client import EngineReady, Output, _Request
from stretto.engine.host import StartedEngines
from stretto.engine.llm import SpeechLLM, _is_timed
from stretto.engine.permits import Permits
from stretto.engine.protocol import EngineStats, Trailer
from stretto.errors import InvalidRequest, NoCapacity
from stretto.families.tiny.family import TINY
from stretto.family.text import SILENT
from stretto.records.chunk import GuidanceChange, LMChunk
from stretto.records.prompt import Prompt
from stretto.records.sampling import Delivery
from stretto.streams.chunking import ChunkPolicy
from stretto.testing.checkpoints import make_prompt
from stretto.testing.reference import ReferenceModel
from tests.engine.forking import forked_processes, stopped
from tests.engine.harness import DEFAULTS
from tests.patience import until_async
from tests.random_checkpoints import write_checkpoint
from tests.small_vocabularies import CSM
from tests.speech_families import RECORDED

WAITING = 40  # sequences; all that the other tests have at once

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"), TINY, "tiny")


@pytest.fixture(scope="module")
def reference(folder: Path) -> ReferenceModel:
    return ReferenceModel(folder, TINY, 512)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def llm(folder: Path) -> AsyncIterator[SpeechLLM]:
    with forked_processes():
        running = await SpeechLLM.start(EngineConfig(folder, {**DEFAULTS, "max_num_seqs": 6}, max_waiting=WAITING))
    yield running
    running.shutdown()


async def collect(llm: SpeechLLM, prompt: Prompt, lag_s: float = 0.0) -> list[LMChunk]:
    chunks = []
    async with aclosing(llm.generate(prompt)) as generated:
        async for chunk in generated:
            chunks.append(chunk)
            await asyncio.sleep(lag_s)
    return chunks


def codes_of(chunks: list[LMChunk]) -> np.ndarray:
    return np.concatenate([np.zeros((7, 0), np.int32), *(c.codes for c in chunks if c.codes is not None)], 1)


def expected_codes(reference: ReferenceModel, prompt: Prompt) -> np.ndarray:
    """Return the codes [7, T] of the reference's reply."""
    rows, _ = reference.reply(prompt)
    audio = [i for i, row in enumerate(rows) if row[0] in TINY.layout.audio[0]]
    return np.array(
        [
            [rows[i + delay][stream] - ids.start for i in audio]
            for stream, (ids, delay) in enumerate(zip(TINY.layout.audio, TINY.layout.delays, strict=True))
            if stream
        ]
    ).reshape(7, -1)


async def test_reply_matches_the_reference_with_a_consistent_report(llm: SpeechLLM, reference: ReferenceModel) -> None:
    prompt = make_prompt(TINY, 6)
    chunks = await collect(llm, prompt)
    expected = expected_codes(reference, prompt)
    assert np.array_equal(codes_of(chunks), expected)
    report = chunks[-1].chunk.report
    assert report is not None
    assert report.num_frames == report.guided_frames == expected.shape[1] > 0
    assert report.num_prompt_rows == len(prompt.rows)
    assert report.seed == prompt.sampling.seed
    assert report.guidance_scale == prompt.sampling.guidance_scale
    times = [0, report.queue_s, report.first_frame_s, report.total_s]
    assert times == sorted(times)
    assert report.queue_s != report.first_frame_s


async def test_reply_that_misses_its_end_is_ended_at_the_ceiling(llm: SpeechLLM) -> None:
    num_frames = TINY.task("tts").speech_limits.max_frames("Hi", TINY.frame_rate)
    num_rows = TINY.num_audio_rows(num_frames)
    prompt = make_prompt(TINY, 6, "tts")
    endless = replace(prompt.sampling.audio, min_rows=num_rows, max_rows=num_rows)
    prompt = replace(prompt, sampling=replace(prompt.sampling, audio=endless), has_ceiling=True)
    report = (await collect(llm, prompt))[-1].chunk.report
    assert report is not None
    assert (report.finish_reason, report.num_frames) == ("ceiling", num_frames)


async def test_new_replies_are_refused_while_first_frames_are_late(
    llm: SpeechLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No reply can meet the target; the second of two replies reduces the limit to what both take."""
    monkeypatch.setattr(llm, "_permits", Permits(6, 0, lambda _: True, lambda: 0, target_s=1e-9))
    prompts = [make_prompt(TINY, seed, "tts", guidance_scale=2.0) for seed in range(2)]
    first, second = (llm.generate(prompt) for prompt in prompts)
    await anext(first)
    async for chunk in second:
        if chunk.codes is not None:
            break
    with pytest.raises(
        NoCapacity, match=r"the maximum for a first frame within 1e-09 s, and this reply has 2; try again"
    ):
        await anext(llm.generate(prompts[0]))
    await first.aclose()
    await second.aclose()
    assert await collect(llm, prompts[1])


async def test_large_first_chunks_do_not_count_as_late(llm: SpeechLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm, "_permits", Permits(6, 0, lambda _: True, lambda: 0, target_s=1e-9))
    prompts = [make_prompt(TINY, seed, "tts", guidance_scale=2.0) for seed in range(2)]
    chunking = ChunkPolicy(TINY.first_chunk_frames + 1, TINY.steady_chunk_frames)
    large = [replace(prompt, delivery=replace(prompt.delivery, chunking=chunking)) for prompt in prompts]
    beside = [llm.generate(large[0]) for _ in range(2)]
    for reply in beside:
        await anext(reply)
    assert await collect(llm, large[1])
    last = llm.generate(prompts[0])
    assert await anext(last)
    for reply in (*beside, last):
        await reply.aclose()


async def test_first_chunks_that_the_server_sends_by_default_count() -> None:
    prompt = make_prompt(TINY, 0, "tts")
    large = ChunkPolicy(TINY.first_chunk_frames + 1, TINY.steady_chunk_frames)
    for default, is_timed in ((0, False), (large.first_frames, True)):
        delivery = Delivery(chunking=large, default_first_frames=default)
        assert _is_timed(replace(prompt, delivery=delivery), TINY) == is_timed


class Silent:
    """Engine whose replies end before their first row."""

    ready = EngineReady(max_model_len=512, num_gpu_blocks=100, block_size=32, max_num_seqs=4)
    started, num_engines = StartedEngines([]), 1

    def has(self, request_id: str) -> bool:
        return False

    async def call(self, method: str, *_: object) -> None:
        raise AssertionError(f"{method} is not called")

    async def generate(self, *_: object) -> AsyncIterator[Output]:
        yield Output([0] * len(Trailer._fields), "stop")


async def test_reference_chunk_is_sent_before_the_engine_starts(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stretto.engine.llm.read_family", lambda _: CSM)
        patch.setattr("stretto.engine.llm.load_text_codec", lambda *_: SILENT)
        speaker = SpeechLLM(cast(Any, Silent()), EngineConfig(folder), cast(Any, None))
    rows = np.array([[57, *[58] * 5], *[[ids.start + row for ids in CSM.layout.audio] for row in range(3)]], np.int32)
    prompt = replace(make_prompt(CSM, 0, "tts", guidance_scale=1.0), rows=rows, num_reference_rows=3)
    with pytest.raises(InvalidRequest, match=r"options.adapter: expected no value \(this server has no adapters"):
        await anext(speaker.generate(replace(prompt, adapter="singer")))
    opening, last = await collect(speaker, prompt)
    assert (opening.chunk.index, opening.chunk.num_reference_frames) == (0, 3)
    assert opening.codes is not None
    assert opening.codes.tolist() == [[0, 1, 2]] * 6
    assert (last.chunk.index, last.chunk.num_reference_frames, last.codes) == (1, 0, None)
    assert last.chunk.report is not None
    assert last.chunk.report.first_frame_s is None


class Endless(Silent):
    """Engine whose replies do not end."""

    ready = EngineReady(max_model_len=160, num_gpu_blocks=16, block_size=32, max_num_seqs=4)

    async def generate(self, *_: object) -> AsyncIterator[Output]:
        await asyncio.Event().wait()
        yield Output([], None)


async def test_empty_reply_is_sent_without_the_engine(folder: Path) -> None:
    llm = SpeechLLM(cast(Any, Endless()), EngineConfig(folder), cast(Any, None))
    prompt = replace(make_prompt(TINY, 0, "asr"), has_empty_reply=True, input_audio_s=2.0)
    (last,) = await collect(llm, Prompt.from_bytes("prompt", prompt.to_bytes(), prompt.rows))
    assert (last.chunk.text, last.chunk.is_final, last.codes) == ("", True, None)
    assert last.chunk.report is not None
    assert (last.chunk.report.finish_reason, last.chunk.report.num_text_tokens) == ("stop", 0)
    assert last.chunk.report.input_audio_s == 2.0


async def test_excess_sessions_and_frames_without_a_session_are_refused(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stretto.engine.llm.read_family", lambda _: RECORDED)
        patch.setattr("stretto.engine.llm.load_text_codec", lambda *_: SILENT)
        shared = SimpleNamespace(read=EngineStats)
        llm = SpeechLLM(cast(Any, Endless()), EngineConfig(folder), cast(Any, shared))
    prompt = replace(make_prompt(RECORDED, 1), track=(), is_open=True)
    sessions = [llm.generate(prompt, f"s{at}") for at in range(2)]  # (15 - 5) // 5 blocks
    tasks = [asyncio.ensure_future(anext(session)) for session in sessions]
    await asyncio.sleep(0)
    with pytest.raises(NoCapacity, match="2 sessions are open, try again"):
        await anext(llm.generate(prompt, "s2"))
    frames = np.zeros((2, 3), np.int32)
    assert await llm.write_frames("s0", frames, False, 0.16, max_ahead=2) == (2, 2)
    for bad in (frames[:, :2], frames - 1, frames + RECORDED.layout.vocab_size):
        with pytest.raises(InvalidRequest, match=r"frames: expected ids \[n, 3\]"):
            await llm.write_frames("s0", bad, False, 0.16, max_ahead=2)
    with pytest.raises(InvalidRequest, match=r"session\.id: expected the id of an open session, got s2"):
        await llm.write_frames("s2", frames, False, 0.16, max_ahead=2)
    with llm.session_place("a"):
        with pytest.raises(NoCapacity, match="1 sessions are open, 1 of them from this host, try again"):
            llm.session_place("a").__enter__()
        with llm.session_place("b"), pytest.raises(NoCapacity, match="2 sessions are open, 0 of them"):
            llm.session_place("c").__enter__()
    llm._places.limit = 1
    with llm.session_place("a"):
        pass
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    counts = asdict(llm._stats)
    assert (counts["live_sessions"], counts["live_refused_total"], counts["live_frames_total"]) == (0, 3, 2)


async def test_reply_beyond_the_queue_limit_is_refused_and_others_finish(llm: SpeechLLM) -> None:
    prompts = [make_prompt(TINY, seed, "tts", guidance_scale=2.0) for seed in range(4)]
    alone = [codes_of(await collect(llm, prompt)) for prompt in prompts]
    replies = [llm.generate(prompts[number % 4]) for number in range((6 + WAITING) // 2)]  # guided: two sequences each
    tasks = [asyncio.create_task(anext(reply)) for reply in replies]
    await asyncio.sleep(0)  # each has begun, and taken its place
    before = llm.stats()
    with pytest.raises(NoCapacity, match=r"46 sequences are already in flight \(limits: 6 running, 40 waiting\)"):
        await collect(llm, prompts[0])
    assert llm.stats()["active"] == before["active"] == len(replies)
    for number, (task, reply) in enumerate(zip(tasks, replies, strict=True)):
        chunks = [await task, *[chunk async for chunk in reply]]
        np.testing.assert_array_equal(codes_of(chunks), alone[number % 4])
    np.testing.assert_array_equal(codes_of(await collect(llm, prompts[0])), alone[0])


async def test_host_is_served_while_another_has_taken_all_permits(
    llm: SpeechLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its replies take turns with those of the other host, of which all are generated unchanged."""
    prompts = [make_prompt(TINY, seed, "tts", guidance_scale=2.0) for seed in range(4)]
    alone = [codes_of(await collect(llm, prompt)) for prompt in prompts]
    ended, push = list[str](), _Request.push  # hosts, in the order in which the engine ends their replies

    def noted(request: _Request, ids: list[int], finish_reason: str | None, *states: Any) -> None:
        if finish_reason is not None:
            ended.append(request.id.partition(" ")[0])
        push(request, ids, finish_reason, *states)

    async def collected(host: str, number: int) -> list[LMChunk]:
        return [chunk async for chunk in llm.generate(prompts[number % 4], f"{host} {number}", host=host)]

    monkeypatch.setattr(_Request, "push", noted)
    with stopped(llm):
        flood = [asyncio.create_task(collected("flood", number)) for number in range((6 + WAITING) // 2)]
        await asyncio.sleep(0)  # each has begun, and taken its place
        with pytest.raises(NoCapacity, match="46 sequences are already in flight, 46 of them from this host"):
            await collected("flood", -1)
        other = [asyncio.create_task(collected("other", number)) for number in range(3)]
        await until_async(lambda: llm._engine.num_requests == len(flood) + len(other))
    for tasks in (flood, other):
        for number, chunks in enumerate(await asyncio.gather(*tasks)):
            np.testing.assert_array_equal(codes_of(chunks), alone[number % 4])
    last = max(index for index, host in enumerate(ended) if host == "other")
    assert 2 * ended[:last].count("flood") < len(flood), "the other host waited for most replies of the flood"


async def test_finished_unread_replies_use_no_slots(
    llm: SpeechLLM,
) -> None:
    prompt = make_prompt(TINY, 1, "tts", guidance_scale=2.0)
    unheard = [llm.generate(prompt) for _ in range((6 + WAITING) // 2)]
    firsts = [await anext(reply) for reply in unheard]
    while llm.has_work():
        await asyncio.sleep(0)
    assert len(firsts) == len(unheard)
    assert (await collect(llm, prompt))[-1].chunk.is_final
    for reply in unheard:
        await reply.aclose()


async def test_frames_are_counted_during_a_reply(llm: SpeechLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows are read one by one, however many have come."""
    pop, width = _Request.pop, 1 + llm._rules.num_row_words

    async def pop_row(request: _Request) -> Output:
        ids, reason, states = await pop(request)
        if len(ids) - (len(Trailer._fields) if reason else 0) <= width:
            return Output(ids, reason, states)
        request._ids = ids[width:] + request._ids
        return Output(ids[:width], None, states)

    monkeypatch.setattr(_Request, "pop", pop_row)
    prompt = make_prompt(TINY, 6)
    long = replace(prompt.sampling.audio, min_rows=80, max_rows=80)
    prompt = replace(prompt, sampling=replace(prompt.sampling, audio=long))
    before = llm.stats()["frames_total"]
    counts, num_sent = [], 0
    async for chunk in llm.generate(prompt):
        counts.append(llm.stats()["frames_total"] - before)
        num_sent += 0 if chunk.codes is None else chunk.codes.shape[1]
        assert counts[-1] >= num_sent, "what has left is counted"
    assert counts == sorted(counts)
    assert len(set(counts[:-1])) > 2, "it moves before the reply ends"
    assert counts[-1] == chunk.chunk.report.num_frames


async def test_frames_of_an_abandoned_reply_stay_counted(llm: SpeechLLM) -> None:
    before = llm.stats()["frames_total"]
    async with aclosing(llm.generate(make_prompt(TINY, 6))) as chunks:
        async for chunk in chunks:
            if chunk.codes is not None:
                break
    assert llm.stats()["frames_total"] > before


async def test_twelve_concurrent_replies_with_slow_readers_are_correct(
    llm: SpeechLLM, reference: ReferenceModel
) -> None:
    prompts = [make_prompt(TINY, index, "tts") for index in range(12)]
    replies = await asyncio.gather(*(collect(llm, p, lag_s=0.03 * (i % 3)) for i, p in enumerate(prompts)))
    for prompt, chunks in zip(prompts, replies, strict=True):
        assert np.array_equal(codes_of(chunks), expected_codes(reference, prompt))
    assert llm.stats()["unguided_total"] == 0


async def test_abandoned_reply_frees_the_engine(llm: SpeechLLM, reference: ReferenceModel) -> None:
    prompt = make_prompt(TINY, 6)
    before = llm.stats()["finished_total"]

    async def leave(after: int) -> bool:
        """Leave after chunk `after`; return True if it was not the last one, which depends on the clock."""
        async with aclosing(llm.generate(prompt)) as chunks:
            async for chunk in chunks:
                if chunk.chunk.index >= after:
                    return chunk.chunk.report is None
        return False

    has_left = await asyncio.gather(*(leave(index % 3) for index in range(12)))
    assert has_left.count(True) >= 4
    assert llm.stats()["active"] == llm.stats()["pairs"] == 0
    assert llm.stats()["finished_total"] == before + has_left.count(False)
    chunks = await collect(llm, prompt)
    assert np.array_equal(codes_of(chunks), expected_codes(reference, prompt)), "it got a slot of those who left"


async def test_cancelled_reader_frees_the_engine(llm: SpeechLLM) -> None:
    task = asyncio.create_task(collect(llm, make_prompt(TINY, 6), lag_s=5.0))
    while llm.stats()["active"] == 0:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert llm.stats()["active"] == 0


async def test_missing_seed_is_drawn_and_reported(llm: SpeechLLM) -> None:
    prompt = make_prompt(TINY, 2)
    free = replace(prompt, sampling=replace(prompt.sampling, seed=None))
    first, second = await asyncio.gather(collect(llm, free), collect(llm, free))
    seeds = [chunks[-1].chunk.report.seed for chunks in (first, second)]
    assert seeds[0] != seeds[1]
    again = await collect(llm, replace(prompt, sampling=replace(prompt.sampling, seed=seeds[0])))
    assert np.array_equal(codes_of(again), codes_of(first))


async def test_engine_serves_prompts_after_an_invalid_prompt(llm: SpeechLLM) -> None:
    prompt = make_prompt(TINY, 6)
    for bad in (replace(prompt, task="sing"), replace(prompt, rows=prompt.rows[:0])):
        with pytest.raises(InvalidRequest):
            await collect(llm, bad)
    assert llm.stats()["active"] == 0
    assert (await collect(llm, prompt))[-1].chunk.is_final


@pytest.mark.parametrize("request_id", [7, b"seven", ["seven"]])
async def test_non_string_request_id_is_refused(llm: SpeechLLM, request_id: object) -> None:
    with pytest.raises(InvalidRequest, match="request_id: expected a string, got "):
        async for _ in llm.generate(make_prompt(TINY, 0), request_id):
            pass
    assert await collect(llm, make_prompt(TINY, 0))


async def test_duplicate_request_id_is_refused_without_affecting_its_owner(llm: SpeechLLM) -> None:
    prompt = make_prompt(TINY, 6)
    async with aclosing(llm.generate(prompt, "mine")) as chunks:
        await anext(chunks)
        with pytest.raises(InvalidRequest, match="request_id"):
            await anext(llm.generate(prompt, "mine"))
        rest = [chunk async for chunk in chunks]
    assert rest[-1].chunk.report.num_frames > 0


async def test_timed_guidance_is_reported_and_counted_separately(llm: SpeechLLM, reference: ReferenceModel) -> None:
    prompt = make_prompt(TINY, 6, "tts", policy="until_s", guided_until_s=0.18)  # five frames of 37.5 ms
    before = llm.stats()
    chunks = await collect(llm, prompt)
    assert np.array_equal(codes_of(chunks), expected_codes(reference, prompt))
    report = chunks[-1].chunk.report
    assert (report.guidance_policy, report.guided_frames) == ("until_s", 5)
    assert report.num_frames > 5
    assert report.guidance_changes == (GuidanceChange(5, False),)
    told = [change for chunk in chunks for change in chunk.chunk.guidance_changes]
    assert told == [GuidanceChange(5, False)]
    after = llm.stats()
    name = "frames_unguided_by_policy_total"
    assert after[name] - before[name] == report.num_frames - 5
    assert after["unguided_total"] == 0


async def test_asr_yields_text_and_no_audio(llm: SpeechLLM) -> None:
    prompt = make_prompt(TINY, 1)
    assert prompt.task == "asr"
    chunks = await collect(llm, prompt)
    report = chunks[-1].chunk.report
    assert report.num_frames == report.guided_frames == 0
    assert report.first_frame_s is None
    assert report.guidance_scale == 1.0
    assert report.num_text_tokens > 0
