"""Schedules say by a row's place alone who says it, and how far modules may stay behind."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stretto.families.bursts import Bursts, BurstSchedule

NUM_ROWS = 400


@st.composite
def modes(draw: st.DrawFn) -> tuple[int, ...]:
    """Pairs of rows of the main model and of modules; the last has some of modules."""
    pairs = [(draw(st.integers(1, 5)), draw(st.integers(0, 10))) for _ in range(draw(st.integers(0, 3)))]
    return (*(number for pair in pairs for number in pair), draw(st.integers(1, 5)), draw(st.integers(1, 10)))


def expanded(mode: tuple[int, ...]) -> str:
    """The published way to say it: a letter a row."""
    mains, extras, kinds = list(mode[::2]), list(mode[1::2]), ""
    while len(kinds) < NUM_ROWS:
        kinds += "M" * (mains.pop(0) if len(mains) > 1 else mains[0])
        kinds += "m" * (extras.pop(0) if len(extras) > 1 else extras[0])
    return kinds[:NUM_ROWS]


@pytest.mark.slow
@given(modes())
def test_steps_are_those_of_the_schedule_row_by_row(mode: tuple[int, ...]) -> None:
    schedule, kinds, index = BurstSchedule("any", mode), expanded(mode), 0
    while index + 1 + max(mode[1::2]) < NUM_ROWS:
        extra = schedule.num_extra(index)
        assert kinds[index : index + 1 + extra] == "M" + "m" * extra
        assert all(schedule.next_step(row) == index + 1 + extra for row in range(index + 1, index + 2 + extra))
        index += 1 + extra
        assert kinds[index] == "M"


@given(modes())
def test_no_step_begins_with_a_row_of_a_module(mode: tuple[int, ...]) -> None:
    for index, kind in enumerate(expanded(mode)[:60]):
        if kind == "m":
            with pytest.raises(AssertionError, match="a module's"):
                BurstSchedule("any", mode).num_extra(index)


@given(modes(), st.integers(0, 3))
def test_the_window_is_the_most_that_any_module_has_yet_to_read(mode: tuple[int, ...], more: int) -> None:
    """Followed module by module and row by row, through a long reply to a prompt of 50 rows."""
    num_modules = max(mode[1::2]) + more
    schedule, num_read, index, widest = BurstSchedule("any", mode), 50, 0, num_modules
    final = [0] * num_modules  # up to where each module has read rows together with ids that are known
    while index < NUM_ROWS // 2:
        extra = schedule.num_extra(index)
        widest = max(widest, num_read - min(final)) if index else widest
        if extra or index == 0:
            final = [min(num_read, num_read + extra - k) for k in range(num_modules)]
        index, num_read = index + 1 + extra, num_read + 1 + extra
    assert schedule.window(num_modules) == widest


@pytest.mark.parametrize(("mode", "window"), [((1, 10), 11), ((1, 10, 4, 10), 14), ((1, 4, 3, 8, 4, 10), 14)])
def test_the_windows_of_the_published_schedules(mode: tuple[int, ...], window: int) -> None:
    assert BurstSchedule("published", mode).window(10) == window


def test_the_first_schedule_is_the_one_of_who_names_none() -> None:
    bursts = Bursts(10, (BurstSchedule("turbo", (1, 10)), BurstSchedule("vanilla", (8192, 0))))
    assert bursts.schedule(None).name == "turbo"
    assert bursts.schedule("vanilla").mode == (8192, 0)
    assert (bursts.max_extra, bursts.window, bursts.rows_per_step) == (10, 11, 1.0)
    with pytest.raises(KeyError, match="'boost' is not one of"):
        bursts.schedule("boost")


@pytest.mark.parametrize("mode", [(), (1,), (0, 3), (1, -1), (1, 3, 2, 0)])
def test_a_mode_that_is_none_is_refused(mode: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="any: "):
        BurstSchedule("any", mode)


def test_a_schedule_for_more_modules_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="3 modules do not say 4 rows"):
        Bursts(3, (BurstSchedule("any", (1, 4)),))
