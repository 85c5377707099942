"""Unconditional requests end if steps are slower than frames, and return only with time to spare."""

import pytest

from stretto.engine.scheduling.guidance import AVERAGED_STEPS, RESTORE_STEPS, SETTLE_STEPS, StepLoad

PERIOD_S = 0.02


class Steps:
    """Step load in simulated time."""

    def __init__(self, frame_rate: float = 1 / PERIOD_S) -> None:
        self.now = 100.0
        self.load = StepLoad(frame_rate, clock=lambda: self.now)
        self.load.begin_step(is_counted=True)

    def run(self, *step_s: float, num_rows: int = 10, is_counted: bool = True) -> int:
        """Run steps of the given durations in seconds, and return the decision after the last."""
        for seconds in step_s:
            self.load.end_schedule(num_rows)
            self.now += seconds
            self.load.begin_step(is_counted)
        return self.load.excess(num_rows)


def test_nothing_is_decided_before_steps_have_been_seen() -> None:
    steps = Steps()
    assert steps.run(*[0.04] * (SETTLE_STEPS - 1)) == 0
    assert steps.run(0.04) == 5


@pytest.mark.parametrize(("step_s", "excess"), [(0.0201, 1), (0.03, 3), (0.04, 5), (0.2, 9)])
def test_as_many_halves_go_as_rows_are_too_many(step_s: float, excess: int) -> None:
    assert Steps().run(*[step_s] * SETTLE_STEPS) == excess


@pytest.mark.parametrize("step_s", [0.0156, 0.02])
def test_between_the_two_bounds_nothing_changes(step_s: float) -> None:
    assert Steps().run(*[step_s] * 40) == 0


def test_one_half_comes_back_when_a_step_with_it_would_leave_room() -> None:
    steps = Steps()
    assert steps.run(*[0.0152] * (RESTORE_STEPS - 1)) == 0
    assert steps.run(0.0152) == -1
    steps.load.start_over()
    assert steps.run(*[0.0152] * (RESTORE_STEPS - 1)) == 0
    assert steps.run(0.0152) == -1


def test_one_long_prompt_is_no_overload() -> None:
    steps = Steps()
    steps.run(*[0.01] * AVERAGED_STEPS)
    assert steps.run(0.1, 0.01, 0.01) <= 0


def test_idle_time_and_steps_that_take_a_half_back_do_not_count() -> None:
    steps = Steps()
    steps.run(*[0.019] * AVERAGED_STEPS)
    steps.run(3.0, num_rows=0)
    assert steps.run(0.019) == 0
    assert steps.run(0.5, is_counted=False) == 0


def test_without_a_frame_rate_no_step_is_slow() -> None:
    assert Steps(frame_rate=0.0).run(*[100.0] * SETTLE_STEPS) == 0
