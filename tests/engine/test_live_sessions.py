"""Live sessions give the text of the whole recording, at any pace and in any batch."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stretto.engine.reply_rules import TextUpdate
from stretto.records.prompt import Prompt
from tests.engine.harness import Answer, Engine, update_request
from tests.engine.live_play import MOST, Speaker, play
from tests.random_checkpoints import write_checkpoint
from tests.speech_families import NUM_TEXT_IDS, RECORDED
from tests.tiers import ASYNC_BY_DAY, by_night

pytestmark = pytest.mark.engine
LENGTHS = (1, 90, 33, 64, 2, 80, 47, 90)  # frames; four windows of 20 rows and more
SESSION_ROOM = 4  # blocks of 32 rows: two for the window, two because blocks are freed late
LIMITS: dict[str, Any] = {"max_model_len": 512, "max_num_seqs": 10, "max_num_batched_tokens": 32}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a random model whose rows attend to 20 rows."""
    folder = write_checkpoint(tmp_path_factory.mktemp("live"), RECORDED, RECORDED.name, 64, 2, backbone="llama")
    config = json.loads((folder / "config.json").read_text())
    config |= {"sliding_window": 20, "layer_types": ["sliding_attention"] * config["num_hidden_layers"]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def engine_of(checkpoint: Path, is_async: bool = False, **limits: Any) -> Engine:
    return Engine(checkpoint, async_scheduling=is_async, **LIMITS | limits)


@pytest.fixture(scope="module", params=ASYNC_BY_DAY)
def engine(request: pytest.FixtureRequest, checkpoint: Path, text: list[int]) -> Iterator[Engine]:
    """Return an engine, which starts when that for the text has ended."""
    with engine_of(checkpoint, request.param, num_gpu_blocks_override=MOST * SESSION_ROOM + 6) as running:
        yield running


def recording(num_frames: int) -> Prompt:
    """Return a prompt with the first frames of a random recording."""
    codes = np.random.default_rng(0).integers(NUM_TEXT_IDS + 3, RECORDED.layout.vocab_size, (400, 3))
    row = np.array([[NUM_TEXT_IDS, *[RECORDED.layout.pad_id] * 3]], np.int32)
    (task,) = RECORDED.tasks
    return Prompt(task.name, row, replace(task.sampling, seed=0), track=tuple(codes[:num_frames].reshape(-1).tolist()))


def recordings() -> list[Prompt]:
    return [recording(length) for length in LENGTHS]


def text_of(answer: Answer) -> list[int]:
    return [row[0] for row in answer.rows]


@pytest.fixture(scope="module")
def text(checkpoint: Path) -> list[int]:
    """Return the text of a whole recording with the greatest length, without its end."""
    with engine_of(checkpoint) as engine:
        found = text_of(engine.run({"r": recording(max(LENGTHS))})["r"])
    assert len({*found}) > 10
    assert found[-1] == RECORDED.end_of_reply
    return found[:-1]


@pytest.fixture(scope="module")
def wanted(text: list[int]) -> dict[int, list[int]]:
    """Return the text of the first frames of the recording, by number of frames."""
    return {length: [*text[: length + 1], RECORDED.end_of_reply] for length in set(LENGTHS)}


@pytest.mark.parametrize(
    ("seed", "slowest", "aborts", "others"), [(3, 12, 2, 6), *by_night((1, 1, 0, 8), (2, 40, 3, 4), (4, 4, 1, 0))]
)
def test_live_text_does_not_depend_on_pace_or_other_requests(
    engine: Engine, checkpoint: Path, wanted: dict[int, list[int]], seed: int, slowest: int, aborts: int, others: int
) -> None:
    stats = engine.scheduler.stats.values
    before = stats.preemptions_total
    answers = play(engine, recordings(), seed, slowest, aborts, others)
    assert len(answers) == len(LENGTHS) - aborts + others
    for name, answer in answers.items():
        assert text_of(answer) == wanted[LENGTHS[int(name[1:])]], name
        assert answer.trailer is not None
        assert not answer.trailer.was_cut
        if name[0] == "s":
            assert answer.trailer.num_preemptions == 0, name
    assert stats.live_rows_recomputed_total == 0
    if others > 4:
        assert stats.preemptions_total > before, "the others did not lack blocks"


@pytest.mark.parametrize("is_async", ASYNC_BY_DAY)
def test_lending_reserved_blocks_does_not_change_the_text(
    checkpoint: Path, wanted: dict[int, list[int]], is_async: bool
) -> None:
    """Without the reserve, sessions would be preempted and read all their rows again."""
    limits = {"num_gpu_blocks_override": 6, "live_reserve": False}
    with engine_of(checkpoint, is_async, **limits) as engine:
        answers = play(engine, recordings(), seed=5, slowest=20, aborts=0, others=4)
        assert engine.scheduler.stats.values.live_rows_recomputed_total > 0
    for name, answer in answers.items():
        assert text_of(answer) == wanted[LENGTHS[int(name[1:])]], name


@pytest.mark.parametrize("is_async", ASYNC_BY_DAY)
def test_live_session_may_exceed_the_kv_cache(checkpoint: Path, is_async: bool) -> None:
    """It holds only the blocks of its window, and the reserve covers them at every step."""
    prompt = recording(4 * max(LENGTHS))
    with engine_of(checkpoint, is_async) as engine:
        whole = text_of(engine.run({"r": prompt})["r"])
    with engine_of(checkpoint, is_async, num_gpu_blocks_override=SESSION_ROOM + 1) as engine:
        speaker, random = Speaker(engine, "s", prompt, np.random.default_rng(0), 1), np.random.default_rng(1)
        speaker.begin()
        step, fewest, manager = 0, engine.free_blocks(), engine.scheduler.blocks
        while engine.is_busy() or speaker.is_open:
            if random.random() < 0.5:
                speaker.speak(step)
            if engine.is_busy():
                engine._step({"s": speaker.answer})
            fewest, step = min(fewest, engine.free_blocks()), step + 1
            assert manager.num_free() >= 0
        assert engine.num_free_blocks - fewest <= SESSION_ROOM
        assert engine.is_clean()
    assert len(whole) == 4 * max(LENGTHS) + 2
    assert text_of(speaker.answer) == whole


def test_engine_is_idle_while_all_live_sessions_are_silent(engine: Engine, text: list[int]) -> None:
    """Sessions without audio keep their slots and blocks while the engine sleeps; a recording overtakes them."""
    speakers = [Speaker(engine, f"s{at}", recording(max(LENGTHS)), np.random.default_rng(at), 1) for at in range(3)]
    answers = {each.name: each.answer for each in speakers} | {"r": Answer()}
    for each in speakers:
        each.begin()
        each.send(each.frames[:10], is_last=False)
    while engine.is_busy():
        engine._step(answers)
    assert [len(each.answer.rows) for each in speakers] == [11, 11, 11], "the text after the last frame is known"
    assert engine.scheduler.texts.num_silent == 3
    assert engine.scheduler.texts.num_held == 0, "these do not give up their places"
    engine.add("r", recording(20))
    while engine.is_busy():
        engine._step(answers)
    assert text_of(answers["r"])[:-1] == text[:21]
    assert {each.name for each in speakers} <= {request.request_id for request in engine.scheduler.running}
    engine.core.abort_requests([each.name for each in speakers])
    assert engine.is_clean()


def test_row_limit_ends_a_live_session(engine: Engine, text: list[int]) -> None:
    prompt = recording(max(LENGTHS))
    sampling = replace(prompt.sampling, text=replace(prompt.sampling.text, max_rows=30))
    speaker = Speaker(engine, "s", replace(prompt, sampling=sampling), np.random.default_rng(0), 1)
    speaker.begin()
    speaker.send(speaker.frames[:60], is_last=False)
    while engine.is_busy():
        engine._step({"s": speaker.answer})
    assert text_of(speaker.answer)[:-1] == text[:30]
    assert speaker.answer.trailer is not None
    assert speaker.answer.trailer.was_cut
    assert engine.is_clean()


NUM_SESSIONS, NUM_TICKS, TICK_MS = 64, 40, 80.0


def step_ms(num_rows: int) -> float:
    """Return the duration of a step of Moshi's size on an H200, as estimated."""
    return 5 + 0.5 * num_rows


@pytest.mark.nightly
@pytest.mark.parametrize("is_async", ASYNC_BY_DAY)
def test_64_live_sessions_meet_every_tick(checkpoint: Path, is_async: bool) -> None:
    """On a virtual clock, with frames at random phases. A step takes whichever session has a frame."""
    random = np.random.default_rng(0)
    limits = {"max_num_seqs": NUM_SESSIONS, "max_num_batched_tokens": 2 * NUM_SESSIONS, "num_gpu_blocks_override": 400}
    phases, waits_ms = random.uniform(0, TICK_MS, NUM_SESSIONS), []
    with engine_of(checkpoint, is_async, **limits) as engine:
        prompt = recording(NUM_TICKS)
        speakers = [Speaker(engine, f"s{at}", prompt, random, 1) for at in range(NUM_SESSIONS)]
        answers = {each.name: each.answer for each in speakers}
        for each in speakers:
            each.begin()
        while any(len(each.answer.rows) < 1 for each in speakers):
            engine._step(answers)
        now_ms = 0.0
        while any(each.is_open for each in speakers) or engine.is_busy():
            arrived = []
            for each, phase in zip(speakers, phases, strict=True):
                first = each.num_sent
                each.num_sent = max(first, min(NUM_TICKS, 1 + int((now_ms - phase) // TICK_MS)))
                if each.num_sent > first:
                    each.is_open = each.num_sent < NUM_TICKS
                    ids = each.frames[first : each.num_sent].reshape(-1).astype(np.int32)
                    arrived.append(TextUpdate(each.name, ids, not each.is_open))
            if arrived:
                engine.core.add_request(update_request(*arrived))
            if not engine.is_busy():
                now_ms = min(phase + TICK_MS * each.num_sent for each, phase in zip(speakers, phases, strict=True))
                continue
            before = [len(each.answer.rows) for each in speakers]
            engine._step(answers)
            after = [min(len(each.answer.rows), 1 + NUM_TICKS) for each in speakers]
            now_ms += step_ms(sum(after) - sum(before))
            for num_before, num_after, phase in zip(before, after, phases, strict=True):
                waits_ms += [now_ms - (phase + TICK_MS * (row - 1)) for row in range(num_before, num_after)]
        assert engine.is_clean()
    assert len(waits_ms) == NUM_SESSIONS * NUM_TICKS
    assert all(wait_ms < TICK_MS for wait_ms in waits_ms)
    assert np.percentile(waits_ms, 95) <= 30
