"""Timeouts of an utterance."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds until the first response, between two responses, and for the whole utterance."""

    first_s: float = 30.0
    between_s: float = 15.0
    total_s: float = 300.0

    def __post_init__(self) -> None:
        if not min(self.first_s, self.between_s, self.total_s) > 0:
            raise ValueError(f"time-outs must be > 0 s, got {self}")
