"""Guidance that ends early or is adaptive: each row is exactly guided or exactly unguided, as reported."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from stretto.records.prompt import Prompt
from stretto.testing.checkpoints import make_prompt
from tests.engine.harness import Answer, Engine
from tests.engine.test_parity import TIGHT, Checkpoint, engine, is_async, num_frames
from tests.tiers import by_night

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module", params=["tiny", *by_night("eight_streams")])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(tmp_path_factory.mktemp("checkpoint"), request.param)


@pytest.fixture(scope="module")
def tight(checkpoint: Checkpoint) -> Iterator[Engine]:
    with engine(checkpoint, async_scheduling=is_async(checkpoint), **TIGHT) as running:
        yield running


def speaking(checkpoint: Checkpoint, count: int, **changes: object) -> dict[str, Prompt]:
    """Return prompts for the tasks that speak."""
    tasks = [task.name for task in checkpoint.family.tasks if task.name != "listen" and task.name != "asr"]
    return {f"r{i}": make_prompt(checkpoint.family, i, tasks[i % len(tasks)], **changes) for i in range(count)}


def check_changes(checkpoint: Checkpoint, prompt: Prompt, answer: Answer) -> None:
    """Check the reported end of guidance against the number of frames."""
    rows = [index for index, row in enumerate(answer.rows) if row[0] in checkpoint.family.layout.audio[0]]
    limit = math.ceil(prompt.sampling.guided_until_s * checkpoint.family.frame_rate - 1e-6)
    frames = num_frames(checkpoint.family, answer.rows)
    assert answer.trailer.num_guided_frames == min(frames, limit)
    if limit < frames:
        assert answer.changes == [(rows[0] + limit, False)]


@pytest.mark.parametrize("seconds", [0.3, *by_night(0.04, 60.0)])
def test_timed_guidance_ends_at_its_row_under_any_scheduling(
    checkpoint: Checkpoint, tight: Engine, seconds: float
) -> None:
    changes = {"guidance_scale": 2.0, "policy": "until_s", "guided_until_s": seconds}
    prompts = speaking(checkpoint, 4, **changes)
    answers = tight.run(prompts)
    for request_id, prompt in prompts.items():
        rows = answers[request_id].rows
        assert rows == checkpoint.reply(prompt, 160, guess=rows), request_id
        check_changes(checkpoint, prompt, answers[request_id])
    assert any(answer.changes for answer in answers.values()) == (seconds < 1)


def test_finished_unconditional_request_frees_its_blocks_and_slot(checkpoint: Checkpoint, tight: Engine) -> None:
    prompts = speaking(checkpoint, 3, guidance_scale=2.0, policy="until_s", guided_until_s=0.04)
    alone = dict[int, int]()

    def look(running: Engine) -> None:
        scheduler = running.scheduler
        if len(scheduler.requests) == 1 and scheduler.table["r2"].limit < 1 << 60:
            alone[scheduler.table["r2"].next_output] = len(scheduler.table)

    prompts = {"r2": prompts["r2"]}
    answers = tight.run(prompts, after_step=look)
    assert answers["r2"].rows == checkpoint.reply(prompts["r2"], 160, guess=answers["r2"].rows)
    assert len(alone) > 10, "it ran on by itself"
    assert set(alone.values()) == {1}


class Load:
    """Fake clock for the scheduler, in which step n takes `step_s(n)` seconds."""

    def __init__(self, running: Engine, step_s: Callable[[int], float]):
        self.now, self.engine, self.step_s = 0.0, running, step_s
        self.first = running.num_steps
        running.scheduler.guidance.load.clock = self
        running.scheduler.guidance.load.start_over()

    def __call__(self) -> float:
        self.now += self.step_s(self.engine.num_steps - self.first)
        return self.now


def long_speech(checkpoint: Checkpoint, index: int, **changes: object) -> Prompt:
    """Return a guided prompt with 70 to 80 frames to generate."""
    task = checkpoint.family.tasks[index % 2 if len(checkpoint.family.tasks) > 2 else 0].name
    prompt = make_prompt(checkpoint.family, 4 * index, task, guidance_scale=2.0, **changes)
    audio = replace(prompt.sampling.audio, min_rows=70, max_rows=70 + index)
    return replace(prompt, sampling=replace(prompt.sampling, audio=audio))


def check_adaptive(checkpoint: Checkpoint, prompt: Prompt, answer: Answer, max_model_len: int) -> None:
    """Check that the reply equals the reference with guidance switched at the reported frames."""
    first = next(i for i, row in enumerate(answer.rows) if row[0] in checkpoint.family.layout.audio[0])
    changes = [(index - first, is_guided) for index, is_guided in answer.changes]
    assert [is_guided for _, is_guided in changes] == [index % 2 == 1 for index in range(len(changes))]
    assert answer.rows == checkpoint.reply(prompt, max_model_len, changes, answer.rows)


@pytest.fixture(scope="module")
def adaptive(checkpoint: Checkpoint) -> Iterator[Engine]:
    limits = {"max_num_batched_tokens": 64, "max_num_seqs": 8, "max_model_len": 192}
    with engine(checkpoint, async_scheduling=is_async(checkpoint), **limits) as running:
        yield running


def test_adaptive_guidance_drops_and_restores_unconditional_requests(checkpoint: Checkpoint, adaptive: Engine) -> None:
    prompts = {  # prompts whose decisions have a lead that other processors cannot reverse
        f"r{i}": long_speech(checkpoint, index, policy="adaptive" if i else "always")
        for i, index in enumerate((0, 5, 2, 3))
    }
    period_s, guidance = 1 / checkpoint.family.frame_rate, adaptive.scheduler.guidance
    Load(adaptive, lambda step: period_s * (2 if step < 50 else 0.2))
    dropped, restored = guidance.num_dropped, guidance.num_restored
    answers = adaptive.run(prompts, arrivals={"r3": 30})
    for request_id, prompt in prompts.items():
        check_adaptive(checkpoint, prompt, answers[request_id], 192)
    assert answers["r0"].changes == []
    assert all(answers[name].changes for name in ("r1", "r2", "r3"))
    assert any(len(answers[name].changes) > 1 for name in prompts), "none came back"
    assert guidance.num_dropped - dropped == 3
    assert 0 < guidance.num_restored - restored <= 3
    assert adaptive.is_clean()


def test_youngest_loses_guidance_first_and_oldest_regains_it_first(checkpoint: Checkpoint, adaptive: Engine) -> None:
    prompts = {f"r{i}": long_speech(checkpoint, i + 4, policy="adaptive") for i in range(3)}
    period_s = 1 / checkpoint.family.frame_rate
    Load(adaptive, lambda step: period_s * (1.1 if 20 < step < 62 else 0.8 if step < 20 else 0.2))
    alone = list[tuple[str, ...]]()

    def look(running: Engine) -> None:
        names = tuple(sorted(running.scheduler.guidance.dropped))
        if not alone or alone[-1] != names:
            alone.append(names)

    answers = adaptive.run(prompts, after_step=look)
    for request_id, prompt in prompts.items():
        check_adaptive(checkpoint, prompt, answers[request_id], 192)
    assert alone[:4] == [(), ("r2",), ("r1", "r2"), ("r0", "r1", "r2")], alone
    assert alone[4] == ("r1", "r2"), alone


def test_adaptive_replies_without_load_match_always_guided_ones(checkpoint: Checkpoint, adaptive: Engine) -> None:
    prompt = long_speech(checkpoint, 1, policy="adaptive")
    Load(adaptive, lambda step: 0.5 / checkpoint.family.frame_rate)
    answer = adaptive.run({"one": prompt})["one"]
    assert answer.changes == []
    always = replace(prompt, sampling=replace(prompt.sampling, policy="always"))
    assert answer.rows == checkpoint.reply(always, 192, guess=answer.rows)


@pytest.mark.nightly  # by day in `test_histories.py`
@pytest.mark.parametrize("wave", [20, 7, 33])
def test_guidance_changes_survive_preemption_and_aborts(checkpoint: Checkpoint, tight: Engine, wave: int) -> None:
    """Guidance ends and returns in waves, with memory for little more than one CFG pair; some clients disconnect."""
    prompts = {f"r{i}": long_speech(checkpoint, i, policy="adaptive" if i % 3 else "always") for i in range(6)}
    period_s = 1 / checkpoint.family.frame_rate
    Load(tight, lambda step: period_s * (0.1 if step // wave % 2 else 3))
    aborts = {"r1": 3 * wave, "r5": 50 + wave}
    answers = tight.run(prompts, arrivals={f"r{i}": 9 * i for i in range(6)}, aborts=aborts)
    for request_id, prompt in prompts.items():
        if request_id not in aborts or answers[request_id].trailer:
            check_adaptive(checkpoint, prompt, answers[request_id], 160)
    assert tight.is_clean()
    guidance = tight.scheduler.guidance
    assert (guidance.limited, guidance.dropped, guidance.returning, guidance.adaptive) == ({}, {}, {}, set())
