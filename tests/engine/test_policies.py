"""Guidance that ends early or comes and goes: every row is exactly guided or exactly unguided, as is told."""

import math
from collections.abc import Iterator

import pytest

from python_backend.families.prompt import Prompt
from tests.engine.harness import Answer, Engine
from tests.engine.prompts import make_prompt
from tests.engine.test_parity import FAMILIES, TIGHT, Checkpoint, engine, num_frames

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module", params=list(FAMILIES), ids=["tiny", "eight_streams"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(tmp_path_factory.mktemp("checkpoint"), request.param)


@pytest.fixture(scope="module", params=[False, True], ids=["sync", "async"])
def tight(request: pytest.FixtureRequest, checkpoint: Checkpoint) -> Iterator[Engine]:
    with engine(checkpoint, async_scheduling=request.param, **TIGHT) as running:
        yield running


def speaking(checkpoint: Checkpoint, count: int, **changes: object) -> dict[str, Prompt]:
    """Prompts of the tasks that speak."""
    tasks = [task.name for task in checkpoint.family.tasks if task.name != "listen" and task.name != "asr"]
    return {f"r{i}": make_prompt(checkpoint.family, i, tasks[i % len(tasks)], **changes) for i in range(count)}


def check_changes(checkpoint: Checkpoint, prompt: Prompt, answer: Answer) -> None:
    """What is told of guidance that ends early is what the clock says."""
    rows = [index for index, row in enumerate(answer.rows) if row[0] in checkpoint.family.layout.audio[0]]
    limit = math.ceil(prompt.sampling.guided_until_s * checkpoint.family.frame_rate - 1e-6)
    frames = num_frames(checkpoint.family, answer.rows)
    assert answer.trailer.num_guided_frames == min(frames, limit)
    if limit < frames:
        assert answer.changes == [(rows[0] + limit, False)]


@pytest.mark.parametrize("seconds", [0.04, 0.3, 60.0])
def test_guidance_ends_at_its_row_whatever_the_schedule(checkpoint: Checkpoint, tight: Engine, seconds: float) -> None:
    changes = {"guidance_scale": 2.0, "policy": "until_s", "guided_until_s": seconds}
    prompts = speaking(checkpoint, 8, **changes)
    answers = tight.run(prompts)
    for request_id, prompt in prompts.items():
        assert answers[request_id].rows == checkpoint.reply(prompt, 160), request_id
        check_changes(checkpoint, prompt, answers[request_id])
    assert any(answer.changes for answer in answers.values()) == (seconds < 1)


def test_a_half_that_is_done_leaves_its_blocks_and_its_slot(checkpoint: Checkpoint, tight: Engine) -> None:
    prompts = speaking(checkpoint, 3, guidance_scale=2.0, policy="until_s", guided_until_s=0.04)
    alone = dict[int, int]()

    def look(running: Engine) -> None:
        scheduler = running.scheduler
        if len(scheduler.requests) == 1 and scheduler.replies["r2"].limit < 1 << 60:
            alone[scheduler.replies["r2"].next_output] = len(scheduler.replies)

    prompts = {"r2": prompts["r2"]}
    answers = tight.run(prompts, after_step=look)
    assert answers["r2"].rows == checkpoint.reply(prompts["r2"], 160)
    assert len(alone) > 10, "it ran on by itself"
    assert set(alone.values()) == {1}
