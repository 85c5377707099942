"""Replayed steps repeat the same output without a model, and their requests end with them."""

from types import SimpleNamespace
from typing import Any

import pytest

from stretto.engine.environment import prepare_environment

pytestmark = pytest.mark.engine
prepare_environment()

from benchmarks.scheduler import ReplayedSteps, host_work  # noqa: E402

PARAMS: list[Any] = [None, None]


class Scheduler:
    """Fake scheduler that consumes its output's log-probabilities, as ours does, and its id lists, as vLLM's may."""

    def __init__(self) -> None:
        self.num_computed, self.num_updates, self.has_ended = 0, 0, False
        self.taken: list[Any] = []

    def schedule(self) -> SimpleNamespace:
        return SimpleNamespace(total_num_scheduled_tokens=2)

    def update_from_output(self, scheduled: SimpleNamespace, output: SimpleNamespace) -> None:
        self.taken = [output.logprobs, output.sampled_token_ids]
        output.logprobs, output.sampled_token_ids = None, list(output.sampled_token_ids)
        self.num_updates += 1

    def finish_requests(self, request_ids: None, status: Any) -> None:
        self.has_ended = True


class Engine:
    """Fake engine with two requests that decode from the third step on."""

    def __init__(self) -> None:
        self.scheduler, self.num_steps = Scheduler(), 0

    def add(self, prompts: list[list[int]], params: list[Any]) -> None:
        assert len(prompts) == len(params) == 2

    def num_decoding(self) -> int:
        return 2 if self.num_steps > 2 else 0

    def step(self) -> None:
        self.num_steps += 1
        output = SimpleNamespace(logprobs=f"of step {self.num_steps}", sampled_token_ids=[[1], [2]])
        self.scheduler.update_from_output(self.scheduler.schedule(), output)


def test_scheduler_compared_with_itself_has_a_ratio_of_one() -> None:
    arms: list[Any] = [Engine(), Engine()]
    ours, stock = (ReplayedSteps(arm, [[1], [2]], PARAMS, num_rows=2) for arm in arms)
    work = host_work(ours, stock)
    assert work["instructions"]["ratio"] == 1.0
    assert set(work) == {"cpu_us", "instructions"}
    assert work["instructions"]["ours"]["all"] == work["instructions"]["stock"]["all"] > 0
