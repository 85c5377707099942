"""A step that is submitted late includes the requests that arrived while another one ran."""

from collections import deque
from pathlib import Path

import pytest

from stretto.engine.scheduling.late_submission import KEY, LateSubmission
from stretto.engine.scheduling.step_clock import NUM_DURATIONS, StepClock
from stretto.machine.sizing import HOST_MS_A_ROW
from stretto.testing.checkpoints import make_prompts
from tests.engine.harness import Answer, Engine
from tests.random_checkpoints import write_checkpoint
from tests.speech_families import FORCED_BURSTS

STEP_S = 0.006
EARLY_S = 0.002
HOST_S = 0.001  # from reading the requests to the end of a submission; each request adds a time


class Loop:
    """vLLM's loop with two steps in flight, and a GPU, on a virtual clock."""

    def __init__(self, early_s: float | None, num_requests: int = 0) -> None:
        self.num_requests = num_requests
        self.now = 0.0
        self.gpu_is_free = 0.0
        self.idle_s = 0.0
        self.begun: list[float] = []  # time of each submission, after which a step contains no further request
        self.flight: deque[float] = deque()  # time at which each submitted step ends
        self.clock = StepClock(lambda: self.now)
        self.late = None if early_s is None else LateSubmission(early_s, self.clock, self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def step(self, duration: float = STEP_S) -> None:
        """Wait if configured, read the requests, submit a step, and receive the result if two are in flight."""
        if self.late is not None:
            self.late.wait(self.num_requests)
        self.clock.begin()
        self.begun.append(self.now)
        self.now += HOST_S + self.num_requests * HOST_MS_A_ROW / 1000
        start = max(self.now, self.gpu_is_free)
        self.idle_s += start - self.gpu_is_free
        self.gpu_is_free = start + duration
        self.flight.append(self.gpu_is_free)
        if len(self.flight) < 2:
            return
        self.now = max(self.now, self.flight.popleft())
        self.clock.end(True)

    def mean_wait(self, first: int, last: int) -> float:
        """Return the mean time from an arrival, at a uniformly random time, to the begin of the step that it joins."""
        total = 0.0
        for before, after in zip(self.begun[first:last], self.begun[first + 1 : last + 1], strict=True):
            step_begins = self.begun.index(after) * STEP_S + HOST_S  # steps follow each other without a pause
            total += (after - before) * (step_begins - (before + after) / 2)
        return total / (self.begun[last] - self.begun[first])


def test_arrival_does_not_wait_for_a_whole_step() -> None:
    usual, late = Loop(None), Loop(EARLY_S)
    for loop in (usual, late):
        for _ in range(100):
            loop.step()
    assert usual.mean_wait(50, 98) == pytest.approx(1.5 * STEP_S)
    assert late.mean_wait(50, 98) == pytest.approx(0.5 * STEP_S + EARLY_S)
    assert late.idle_s == usual.idle_s == HOST_S  # before the first step


def test_steps_of_many_replies_are_submitted_earlier() -> None:
    """Otherwise the GPU waits for the host, whose work for a step grows with its rows."""
    loop = Loop(EARLY_S, num_requests=50)
    for _ in range(100):
        loop.step()
    assert loop.idle_s == pytest.approx(HOST_S + 50 * HOST_MS_A_ROW / 1000), "before the first step"


def test_shorter_steps_are_expected_at_once() -> None:
    loop = Loop(EARLY_S)
    for _ in range(50):
        loop.step()
    before = loop.idle_s
    for _ in range(50):
        loop.step(0.004)
    assert loop.idle_s - before <= STEP_S - 0.004


def test_nothing_waits_before_durations_are_known_or_while_two_steps_run() -> None:
    clock = StepClock(lambda: 0.0)
    late = LateSubmission(EARLY_S, clock, pytest.fail)
    for _ in range(NUM_DURATIONS - 1):
        clock.begin()
        clock.end(True)
    clock.begin()
    late.wait(1)
    clock.begin()
    clock.end(True)
    clock.begin()
    late.wait(1)


@pytest.mark.engine
def test_request_that_arrives_in_the_wait_joins_the_next_step(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, FORCED_BURSTS, "forced_bursts", hidden=128, layers=2)
    prompts = make_prompts(FORCED_BURSTS, 2)
    first, second = prompts
    options = {"async_scheduling": True, "additional_config": {KEY: 0.001}}
    with Engine(folder, max_model_len=160, max_num_seqs=8, **options) as engine:
        alone = engine.run(prompts)
        steps: list[set[str]] = []
        joined: list[int] = []

        def add_second(seconds: float) -> None:
            if not joined:
                joined.append(len(steps))
                engine.add(second, prompts[second])

        engine.after_schedule = lambda output: steps.append(set(output.num_scheduled_tokens))
        engine.scheduler.submission._sleep = add_second
        answers = {name: Answer() for name in prompts}
        engine.add(first, prompts[first])
        while engine.is_busy():
            engine._step(answers)
    (index,) = joined
    assert second in steps[index]
    assert [answers[name].rows for name in prompts] == [alone[name].rows for name in prompts]
