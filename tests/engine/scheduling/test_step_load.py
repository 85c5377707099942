"""Unconditional requests end if steps are slower than frames, and return only with time to spare."""

import pytest

from stretto.engine.scheduling.adaptive_guidance import AVERAGED_STEPS, RESTORE_STEPS, SETTLE_STEPS, StepLoad

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


def test_no_load_decision_before_enough_steps() -> None:
    steps = Steps()
    assert steps.run(*[0.04] * (SETTLE_STEPS - 1)) == 0
    assert steps.run(0.04) == 5


@pytest.mark.parametrize(("step_s", "excess"), [(0.0201, 1), (0.03, 3), (0.04, 5), (0.2, 9)])
def test_excess_unconditional_requests_grow_with_the_step_time(step_s: float, excess: int) -> None:
    assert Steps().run(*[step_s] * SETTLE_STEPS) == excess


@pytest.mark.parametrize("step_s", [0.0156, 0.02])
def test_step_time_between_the_bounds_changes_nothing(step_s: float) -> None:
    assert Steps().run(*[step_s] * 40) == 0


def test_one_unconditional_request_is_restored_given_enough_headroom() -> None:
    steps = Steps()
    assert steps.run(*[0.0152] * (RESTORE_STEPS - 1)) == 0
    assert steps.run(0.0152) == -1
    steps.load.start_over()
    assert steps.run(*[0.0152] * (RESTORE_STEPS - 1)) == 0
    assert steps.run(0.0152) == -1


def test_one_long_prompt_does_not_count_as_overload() -> None:
    steps = Steps()
    steps.run(*[0.01] * AVERAGED_STEPS)
    assert steps.run(0.1, 0.01, 0.01) <= 0


def test_idle_time_and_restore_steps_do_not_count_towards_load() -> None:
    steps = Steps()
    steps.run(*[0.019] * AVERAGED_STEPS)
    steps.run(3.0, num_rows=0)
    assert steps.run(0.019) == 0
    assert steps.run(0.5, is_counted=False) == 0


def test_no_step_is_slow_without_a_frame_rate() -> None:
    assert Steps(frame_rate=0.0).run(*[100.0] * SETTLE_STEPS) == 0
