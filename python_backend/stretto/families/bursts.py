"""Bursts: steps in which a model says several rows, by modules behind it. How many follows from a row's place alone.

A schedule (1, 2, 2, 3) with `M` for rows that the main model says, and `m` for those that modules say in the same step:

    row of the reply   0   1   2   3   4   5   6   7   8   9  10  11  12  13 …
                       M   m   m   M   M   m   m   m   M   M   m   m   m   M …
    step               └───0───┘   1   └─────2─────┘   3   └─────4─────┘   5 …
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

MAX_NUMBERS, MAX_NUMBER = 32, 8192  # of a schedule: a request may bring its own


@dataclass(frozen=True)
class BurstSchedule:
    """Which rows of a reply the modules say.

    mode: M1, m1, M2, m2 …: M1 rows of the main model, one a step, the last of them followed by m1 rows of modules in
    the same step; then M2 and m2; the last pair repeats. num_modules: where m is more, the main model says the row
    behind theirs, and they begin anew.
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
        """The most rows that modules say in a step."""
        return min(self.num_modules, max(self.mode[1::2]))

    def num_extra(self, index: int) -> int:
        """How many rows of modules follow row `index` of the reply, one of the main model's, in the same step."""
        place = index
        for main, extra in self._pairs[:-1]:
            if place < main + extra:
                return self._extra(index, place, main, extra)
            place -= main + extra
        main, extra = self._pairs[-1]
        return self._extra(index, place % (main + extra), main, extra)

    def next_step(self, index: int) -> int:
        """The first row at `index` or behind it that is the main model's."""
        step = 0
        while step < index:
            step += 1 + self.num_extra(step)
        return step

    def _extra(self, index: int, place: int, main: int, extra: int) -> int:
        behind = place - (main - 1)  # the last of its rows that the main model says for itself
        if behind < 0:
            return 0
        assert behind % (self.num_modules + 1) == 0, f"{self.name}: row {index} is a module's, no step begins with it"
        return min(self.num_modules, extra - behind)

    def window(self, num_modules: int) -> int:
        """The most rows, counted back from the last that the main model has read, that a module may have yet to read.

        Module k (from 0) reads row j together with the id of row j + k + 1. Modules read a prompt as it comes, and
        what a burst can give them; what came since, and what needed ids not known then, they read with the next burst.
        """
        extra = self.num_extra(0)
        index, widest, behind = 1 + extra, num_modules, max(0, num_modules - 1 - extra)
        for _ in range(sum(self.mode[::2]) + 2 * self.mode[-2] if self.max_extra else 0):
            behind += 1 + extra
            widest = max(widest, behind)
            extra = self.num_extra(index)
            index += 1 + extra
            if extra:
                behind = max(0, num_modules - 1 - extra)
        return widest


@dataclass(frozen=True)
class Bursts:
    """The modules of a model and the schedules that have names; the first is that of requests that say none.

    num_modules: N; module k says the row k + 1 behind the main model's.
    """

    num_modules: int
    schedules: tuple[BurstSchedule, ...]

    def __post_init__(self) -> None:
        if (most := max(schedule.max_extra for schedule in self.schedules)) > self.num_modules:
            raise ValueError(f"{self.num_modules} modules do not say {most} rows in a step")

    def schedule(self, name: str | Sequence[int] | None) -> BurstSchedule:
        """The schedule called `name`, that of these numbers, or the first for None; KeyError lists the names."""
        if name is not None and not isinstance(name, str):
            return BurstSchedule("the request's schedule", tuple(name), self.num_modules)
        for schedule in self.schedules:
            if name in (None, schedule.name):
                return schedule
        raise KeyError(f"{name!r} is not one of {[schedule.name for schedule in self.schedules]}")

    @cached_property
    def window(self) -> int:
        """The most rows that modules may have yet to read: as many as the named schedules leave, but for long ones.

        A step that would leave more to be read has them read without saying anything (`worker/module_rows.py`). So that
        is enough for any schedule, as a burst leaves no more than N, and the step behind it reads N + 1.
        """
        windows = (schedule.window(self.num_modules) for schedule in self.schedules)
        return max(self.num_modules + 1, *(min(window, 2 * self.num_modules) for window in windows))
