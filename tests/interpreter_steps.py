"""Count of interpreter steps, which other load does not affect."""

import sys
from collections.abc import Callable


def count_steps(work: Callable[[], object]) -> int:
    """Return the number of calls and returns of functions during `work`."""
    count = 0

    def step(*_: object) -> None:
        nonlocal count
        count += 1

    sys.setprofile(step)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count
