"""Schedules of multi-token steps, for models with MCTP modules."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from stretto.errors import InvalidRequest, shown
from stretto.family.mechanism import RowSteps
from stretto.family.plugin import lazy

# limits of a schedule, which a request may define
MAX_NUMBERS = 32
MAX_NUMBER = 8192


@dataclass(frozen=True)
class BurstSchedule:
    """Schedule of multi-token steps, which assigns rows to the backbone and the MCTP modules.

    Attributes:
        mode: M1, m1, M2, m2 …: the backbone generates M1 rows, one per step. In the last of these steps, the modules
            generate m1 more rows. Then M2 and m2 apply. The last pair repeats.
        num_modules: Number of modules. If an m is larger, the backbone generates the row after the last module's row,
            and the modules continue from there.
    """

    name: str
    mode: tuple[int, ...]
    num_modules: int = MAX_NUMBER

    def __post_init__(self) -> None:
        if not self.mode or len(self.mode) % 2 or min(self.mode[::2]) < 1 or min(self.mode[1::2]) < 0:
            raise ValueError(f"{self.name}: expected pairs of M >= 1 and m >= 0, got {self.mode}")

    @cached_property
    def _pairs(self) -> tuple[tuple[int, int], ...]:
        return tuple(zip(self.mode[::2], self.mode[1::2], strict=True))

    @cached_property
    def max_extra(self) -> int:
        """Maximum number of rows that the modules generate in one step of this schedule."""
        return min(self.num_modules, max(self.mode[1::2]))

    def num_extra(self, index: int) -> int:
        """Return the number of rows that the MCTP modules generate in the step of backbone row `index`."""
        offset = index
        for main, extra in self._pairs[:-1]:
            if offset < main + extra:
                return self._extra(index, offset, main, extra)
            offset -= main + extra
        main, extra = self._pairs[-1]
        return self._extra(index, offset % (main + extra), main, extra)

    def next_step(self, index: int) -> int:
        """Return the index of the first row at or after `index` that the backbone generates."""
        step = 0
        while step < index:
            step += 1 + self.num_extra(step)
        return step

    def _extra(self, index: int, offset: int, main: int, extra: int) -> int:
        behind = offset - (main - 1)  # 0 for the backbone's row directly before the modules' rows
        if behind < 0:
            return 0
        assert behind % (self.num_modules + 1) == 0, (
            f"{self.name}: row {index} belongs to a module, so no step starts with it"
        )
        return min(self.num_modules, extra - behind)

    def window(self, num_modules: int) -> int:
        """Return the maximum number of recent rows that a module has not read yet.

        Rows are counted back from the last row that the backbone has read. Module k (from 0) reads row j together with
        the id of row j + k + 1. The modules read a prompt chunk by chunk, and the rows of a multi-token step as far as
        their ids are known. They read the remaining rows in the next multi-token step.
        """
        extra = self.num_extra(0)
        index = 1 + extra
        widest = num_modules
        behind = max(0, num_modules - 1 - extra)
        for _ in range(sum(self.mode[::2]) + 2 * self.mode[-2] if self.max_extra else 0):
            behind += 1 + extra
            widest = max(widest, behind)
            extra = self.num_extra(index)
            index += 1 + extra
            if extra:
                behind = max(0, num_modules - 1 - extra)
        return widest


@dataclass(frozen=True)
class ModuleSchedules(RowSteps):
    """MCTP modules of a model and their named schedules; the first schedule is the default.

    Attributes:
        num_modules: Number of modules. Module k (from 0) generates row k + 1 after the backbone's row.
    """

    num_modules: int
    schedules: tuple[BurstSchedule, ...]

    predictor: ClassVar = lazy(f"{__package__}.mechanism.model:module_rows")
    extend: ClassVar = lazy(f"{__package__}.mechanism.model:add_modules")

    @property
    def max_extra(self) -> int:
        return self.num_modules

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(schedule.name for schedule in self.schedules)

    def __post_init__(self) -> None:
        if (most := max(schedule.max_extra for schedule in self.schedules)) > self.num_modules:
            raise ValueError(f"{self.num_modules} modules cannot generate {most} rows in a step")

    def schedule(self, name: str | Sequence[int] | None) -> BurstSchedule:
        """Return the schedule with a name or with given numbers, or the default; raise KeyError for an unknown name."""
        if name is not None and not isinstance(name, str):
            return BurstSchedule("the request's schedule", tuple(name), self.num_modules)
        for schedule in self.schedules:
            if name in (None, schedule.name):
                return schedule
        raise KeyError(f"{name!r} is not one of {[schedule.name for schedule in self.schedules]}")

    def check_numbers(self, numbers: tuple[int, ...]) -> None:
        """Raise InvalidRequest if a request's numbers M, m, M, m, … are invalid."""
        if not numbers or len(numbers) % 2 or len(numbers) > MAX_NUMBERS:
            got = f"{len(numbers)} numbers"
            raise InvalidRequest(
                "options.schedule", f"at most {MAX_NUMBERS // 2} pairs of numbers [M, m, M, m, …]", got
            )
        for at, number in enumerate(numbers):
            low = 0 if at % 2 else 1
            if type(number) is not int or not low <= number <= MAX_NUMBER:
                raise InvalidRequest(f"options.schedule[{at}]", f"an integer in [{low}, {MAX_NUMBER}]", shown(number))

    @cached_property
    def window(self) -> int:
        """Upper bound on the number of recent rows that the modules have not read yet, for any schedule.

        It covers the named schedules up to 2 * num_modules rows. If a step would leave more rows unread, the modules
        read them in that step and generate nothing (`mechanism/module_rows.py`). This suffices for any schedule,
        because a multi-token step leaves at most N = `num_modules` rows, and the next step reads N + 1.
        """
        windows = (schedule.window(self.num_modules) for schedule in self.schedules)
        return max(self.num_modules + 1, *(min(window, 2 * self.num_modules) for window in windows))
