"""Multi-token schedules: a row's position determines its module, and modules lag by a bounded number of rows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stretto.families.vita_audio.bursts import BurstSchedule, ModuleSchedules

NUM_ROWS = 400


@st.composite
def modes(draw: st.DrawFn) -> tuple[int, ...]:
    """Draw pairs of row counts for the main model and for modules; the last pair has rows from modules."""
    pairs = [(draw(st.integers(1, 5)), draw(st.integers(0, 10))) for _ in range(draw(st.integers(0, 3)))]
    return (*(number for pair in pairs for number in pair), draw(st.integers(1, 5)), draw(st.integers(1, 10)))


def expanded(mode: tuple[int, ...], num_modules: int = 10) -> str:
    """Return the published form with a letter per row; after the last module, the main model generates the next row."""
    kinds, in_burst = "", 0
    for kind in letters(mode):
        in_burst = in_burst + 1 if kind == "m" and in_burst < num_modules else 0
        kinds += "m" if in_burst else "M"
    return kinds


def letters(mode: tuple[int, ...]) -> str:
    mains, extras, kinds = list(mode[::2]), list(mode[1::2]), ""
    while len(kinds) < NUM_ROWS:
        kinds += "M" * (mains.pop(0) if len(mains) > 1 else mains[0])
        kinds += "m" * (extras.pop(0) if len(extras) > 1 else extras[0])
    return kinds[:NUM_ROWS]


@pytest.mark.slow
@given(modes(), st.integers(1, 10))
def test_multi_token_steps_follow_the_schedule(mode: tuple[int, ...], num_modules: int) -> None:
    schedule, kinds, index = BurstSchedule("any", mode, num_modules), expanded(mode, num_modules), 0
    assert schedule.max_extra == max(map(len, kinds.split("M")))
    while index + 1 + max(mode[1::2]) < NUM_ROWS:
        extra = schedule.num_extra(index)
        assert kinds[index : index + 1 + extra] == "M" + "m" * extra
        assert all(schedule.next_step(row) == index + 1 + extra for row in range(index + 1, index + 2 + extra))
        index += 1 + extra
        assert kinds[index] == "M"


@given(modes(), st.integers(1, 10))
def test_steps_never_begin_with_an_mtp_row(mode: tuple[int, ...], num_modules: int) -> None:
    for index, kind in enumerate(expanded(mode, num_modules)[:60]):
        if kind == "m":
            with pytest.raises(AssertionError, match="to a module"):
                BurstSchedule("any", mode, num_modules).num_extra(index)


@given(modes(), st.integers(0, 3))
def test_schedule_window_is_the_largest_unread_row_count(mode: tuple[int, ...], more: int) -> None:
    """Each module is followed row by row through a long reply to a prompt of 50 rows."""
    num_modules = max(mode[1::2]) + more
    schedule, num_read, index, widest = BurstSchedule("any", mode), 50, 0, num_modules
    final = [0] * num_modules  # the position up to which each module has read rows with known ids
    while index < NUM_ROWS // 2:
        extra = schedule.num_extra(index)
        widest = max(widest, num_read - min(final)) if index else widest
        if extra or index == 0:
            final = [min(num_read, num_read + extra - k) for k in range(num_modules)]
        index, num_read = index + 1 + extra, num_read + 1 + extra
    assert schedule.window(num_modules) == widest


@pytest.mark.parametrize(("mode", "window"), [((1, 10), 11), ((1, 10, 4, 10), 14), ((1, 4, 3, 8, 4, 10), 14)])
def test_windows_of_published_schedules(mode: tuple[int, ...], window: int) -> None:
    assert BurstSchedule("published", mode).window(10) == window


def test_first_schedule_is_the_default() -> None:
    bursts = ModuleSchedules(10, (BurstSchedule("turbo", (1, 10)), BurstSchedule("vanilla", (8192, 0))))
    assert bursts.schedule(None).name == "turbo"
    assert bursts.schedule("vanilla").mode == (8192, 0)
    assert bursts.window == 11
    with pytest.raises(KeyError, match="'boost' is not one of"):
        bursts.schedule("boost")


def test_custom_schedules_are_limited_to_available_mtp_modules() -> None:
    bursts = ModuleSchedules(4, (BurstSchedule("turbo", (1, 4)), BurstSchedule("rare", (1, 4, 500, 4))))
    schedule = bursts.schedule((1, 7))
    assert (schedule.mode, schedule.max_extra) == ((1, 7), 4)
    assert [schedule.num_extra(index) for index in (0, 5, 8)] == [4, 2, 4]
    assert bursts.window == 8, "what a long pause leaves is read meanwhile"


@pytest.mark.parametrize("mode", [(), (1,), (0, 3), (1, -1)])
def test_invalid_multi_token_schedule_mode_is_refused(mode: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="any: "):
        BurstSchedule("any", mode)


def test_schedule_needing_more_modules_is_refused() -> None:
    with pytest.raises(ValueError, match="3 modules cannot generate 4 rows"):
        ModuleSchedules(3, (BurstSchedule("any", (1, 4)),))
