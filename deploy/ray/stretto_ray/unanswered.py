"""Who has been asked for something a while ago and has said nothing: perhaps there is nobody any more."""

import time
from collections.abc import Callable

LATE_S = 0.8  # a replica says within milliseconds whether it takes a request; less than AGAIN_S of leasing
FORGOTTEN_S = 3.0  # then it may be asked again: who asked may have left before the answer


class Unanswered:
    """Servers by name, and since when they owe an answer."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: dict[str, float] = {}

    def sent(self, name: str) -> None:
        """It was asked for something."""
        if self._age_s(name) > FORGOTTEN_S:
            self._since[name] = self._clock()
        self._since.setdefault(name, self._clock())

    def answered(self, name: str) -> None:
        """It has answered."""
        self._since.pop(name, None)

    def is_late(self, name: str) -> bool:
        """Whether others should be asked before it."""
        return LATE_S < self._age_s(name) <= FORGOTTEN_S

    def _age_s(self, name: str) -> float:
        return self._clock() - self._since.get(name, self._clock())
