"""Unconditional requests receive their tokens through a separate path, with the same results as in vLLM."""

from collections.abc import Iterator

import numpy as np
import pytest
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler

from stretto.engine.protocol import UNCONDITIONAL_SUFFIX
from stretto.engine.scheduling.request_state import RequestState, unconditional_audio
from stretto.families.tiny.family import TINY
from stretto.testing.checkpoints import make_prompt
from tests.engine.harness import Engine
from tests.random_checkpoints import write_checkpoint
from tests.tiers import ASYNC_BY_DAY

pytestmark = pytest.mark.engine

PROMPTS = {f"r{index}": make_prompt(TINY, index, "tts", guidance_scale=2.0) for index in range(3)}


@pytest.fixture(scope="module", params=ASYNC_BY_DAY)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = write_checkpoint(tmp_path_factory.mktemp("checkpoint"), TINY, "tiny", hidden=64, layers=1)
    with Engine(folder, async_scheduling=request.param, max_model_len=160, max_num_seqs=8) as running:
        yield running


def rows_of(state: RequestState, first: int, last: int) -> np.ndarray:
    """Return rows first … last - 1 of all streams, including the prompt, [last - first, S]."""
    tokens = np.asarray(state.request.all_token_ids[first:last], np.int32)
    return np.concatenate([tokens[:, None], state.history.rows(first, last)], 1)


def test_unconditional_requests_use_the_vllm_loop_only_for_prefill(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    scheduled: list[str] = []
    inner = Scheduler.update_from_output

    def update_from_output(self: Scheduler, output: SchedulerOutput, *args: object) -> object:
        seen.extend(id for id in output.num_scheduled_tokens if id.endswith(UNCONDITIONAL_SUFFIX))
        return inner(self, output, *args)

    def note(output: SchedulerOutput) -> None:
        scheduled.extend(id for id in output.num_scheduled_tokens if id.endswith(UNCONDITIONAL_SUFFIX))

    monkeypatch.setattr(Scheduler, "update_from_output", update_from_output)
    engine.after_schedule = note
    answers = engine.run(PROMPTS)
    engine.after_schedule = None
    assert sum(answer.trailer.num_guided_frames for answer in answers.values()) > 20
    assert len(scheduled) > 30
    assert len(seen) <= 2 * len(PROMPTS), "a step for its context each, and no more"


def test_unconditional_request_rows_match_its_partners_audio_rows(engine: Engine) -> None:
    compared = 0

    def compare(running: Engine) -> None:
        nonlocal compared
        table = running.scheduler.table
        for half in [state for state in table.values() if state.is_unconditional]:
            state = table[half.pair.conditional]
            number = min(half.request.num_output_tokens, state.request.num_output_tokens - half.pair.first_output)
            if number > 0:
                first, last = half.request.num_prompt_tokens, half.request.num_prompt_tokens + number
                seen = unconditional_audio(rows_of(state, first, last), table.rules)
                assert np.array_equal(rows_of(half, first, last), seen)
                assert half.request.num_in_flight_tokens == state.request.num_in_flight_tokens
                compared += 1

    engine.run(PROMPTS, after_step=compare)
    assert compared > 20
    assert engine.is_clean()
