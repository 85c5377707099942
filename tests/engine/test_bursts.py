"""Multi-token steps without MTP modules take the scheduled number of steps and give equal replies."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from vllm.v1.core.sched.output import NewRequestData

from stretto.engine.worker.batch_plan import StepRows
from stretto.records.prompt import Prompt
from stretto.testing.checkpoints import make_prompt, make_prompts
from stretto.testing.reference import ReferenceModel
from tests.engine.harness import Engine
from tests.random_checkpoints import write_checkpoint
from tests.speech_families import FORCED_BURSTS, FORCED_CHAT, NUM_TEXT_IDS
from tests.tiers import ASYNC_BY_DAY

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module", params=ASYNC_BY_DAY)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(folder, FORCED_BURSTS, "forced_bursts", hidden=128, layers=2)
    with Engine(folder, max_model_len=160, max_num_seqs=4, async_scheduling=request.param) as running:
        yield running


@pytest.mark.parametrize("is_async", ASYNC_BY_DAY)
def test_text_to_audio_switch_within_a_multi_token_step(tmp_path: Path, is_async: bool) -> None:
    """The replies are unguided, chunked and preempted. Some of the twelve switch to audio within a multi-token step."""
    name = "forced_chat"
    reference = ReferenceModel(write_checkpoint(tmp_path, FORCED_CHAT, name, hidden=64, layers=2), FORCED_CHAT, 160)
    limits = {"max_num_batched_tokens": 48, "max_num_seqs": 4, "max_model_len": 160, "num_gpu_blocks_override": 9}
    engine, given = Engine(tmp_path, async_scheduling=is_async, **limits), make_prompts(FORCED_CHAT, 12)
    answers = engine.run(given)
    engine.shutdown()
    for request_id, answer in answers.items():
        rows, lead = reference.reply(given[request_id], guess=answer.rows)
        assert lead > 1e-5
        assert answer.rows == rows, request_id
    assert sum(answer.trailer.num_preemptions for answer in answers.values()) > 0
    turbo = [answers[name] for name, each in given.items() if (each.task, each.sampling.schedule) == ("chat", "turbo")]
    starts = [next(at for at, row in enumerate(answer.rows) if row[0] >= NUM_TEXT_IDS) for answer in turbo]
    assert any(start % 5 for start in starts), "a burst of `turbo` begins with every fifth row"


def prompt(schedule: str, index: int = 0, num_rows: int = 41, **changes: object) -> Prompt:
    """Return a prompt for a sampled reply of `num_rows` audio rows; the last row ends the audio."""
    made = make_prompt(FORCED_BURSTS, index, "speak", **{"schedule": schedule, "guidance_scale": 2.0, **changes})
    audio = replace(made.sampling.audio, temperature=0.9, min_rows=num_rows - 1, max_rows=num_rows - 1)
    return replace(made, sampling=replace(made.sampling, audio=audio))


@pytest.mark.parametrize(("schedule", "num_main_rows"), [("off", 47), ("mixed", 23), ("turbo", 10)])
def test_number_of_steps_follows_the_multi_token_schedule(engine: Engine, schedule: str, num_main_rows: int) -> None:
    before = engine.num_steps
    (answer,) = engine.run({"one": prompt(schedule)}).values()
    num_steps = engine.num_steps - before
    assert len(answer.rows) == 41 + 6, "and the rows that the streams trail by"
    # One more to read both contexts; async, one that was on its way as the reply ended, and one in which nothing is.
    assert num_main_rows <= num_steps - 1 <= num_main_rows + 3


def test_timed_guidance_ends_at_a_step_boundary(engine: Engine) -> None:
    """The 7 rows of 0.5 s end within the second multi-token step of five rows."""
    (answer,) = engine.run({"one": prompt("turbo", policy="until_s", guided_until_s=0.5)}).values()
    assert answer.changes == [(10, False)]
    assert answer.trailer.num_guided_frames == 10


def test_repeated_codes_are_counted_within_a_multi_token_step(engine: Engine) -> None:
    """The window includes earlier rows of the same step."""
    given = {f"r{index}": _few(prompt("turbo", index, ras_window=4, ras_max_repeats=1)) for index in range(4)}
    reference = ReferenceModel(Path(engine.core.vllm_config.model_config.model), FORCED_BURSTS, 160)
    for name, answer in engine.run(given).items():
        rows, lead = reference.reply(given[name], guess=answer.rows)
        freely, _ = reference.reply(replace(given[name], sampling=replace(given[name].sampling, ras_window=0)))
        assert lead > 1e-5
        assert answer.rows == rows != freely


def _few(made: Prompt) -> Prompt:
    """Restrict replies to a few codes, so that codes repeat."""
    return replace(made, sampling=replace(made.sampling, audio=replace(made.sampling.audio, top_k=2)))


def test_vllm_warm_up_requests_take_one_row_per_step(engine: Engine) -> None:
    state, tokens = engine.model_state, [20, 21, 22]
    state.add_request(2, NewRequestData("_warmup_0", tokens, [], None, None, ([1],), 0, None, prefill_token_ids=tokens))
    rows = StepRows(*np.array([[2], [True], [True], [True]]))
    assert state.slots.num_extra(rows, np.array([3])).tolist() == [0]
    assert state.slots.num_extra(rows, np.array([4])).tolist() == [0]
    state.remove_request("_warmup_0")
