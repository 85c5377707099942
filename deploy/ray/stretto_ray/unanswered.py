"""Detection of replicas that do not answer lease requests, for example because their node has died."""

import time
from collections.abc import Callable

LATE_S = 0.8  # replicas answer within milliseconds; less than AGAIN_S of leasing
FORGOTTEN_S = 3.0  # after this time it may be asked again: the request may have been cancelled before the answer


class Unanswered:
    """Time of the first unanswered request to each server."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: dict[str, float] = {}

    def sent(self, name: str) -> None:
        """Record a request to a server."""
        if self._age_s(name) > FORGOTTEN_S:
            self._since[name] = self._clock()
        self._since.setdefault(name, self._clock())

    def answered(self, name: str) -> None:
        self._since.pop(name, None)

    def is_late(self, name: str) -> bool:
        """Return True if the server's answer is late, so that other servers should be preferred."""
        return LATE_S < self._age_s(name) <= FORGOTTEN_S

    def _age_s(self, name: str) -> float:
        return self._clock() - self._since.get(name, self._clock())
