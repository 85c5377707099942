"""The gateway benchmark retries refused requests and measures from the first attempt.

It does not retry after other errors.
"""

from typing import Any
from unittest.mock import AsyncMock

import pytest

from benchmarks import front_ends
from benchmarks.loads import Trace
from stretto_gateway.answers import ApiError

FULL = ApiError(429, "no room").response().body.decode()
BROKEN = ApiError(502, "broken").response().body.decode()


@pytest.mark.parametrize(("errors", "expected"), [([], None), ([FULL, FULL], None), ([FULL, BROKEN], BROKEN)])
async def test_refusals_are_retried(monkeypatch: pytest.MonkeyPatch, errors: list[str], expected: str | None) -> None:
    monkeypatch.setattr(front_ends.asyncio, "sleep", AsyncMock())
    monkeypatch.setattr(front_ends.time, "perf_counter", lambda: 1.0)
    answers = iter([*(Trace(sent=99.0, error=error) for error in errors), Trace(sent=99.0)])

    async def speak(text: str, options: dict[str, Any]) -> Trace:
        return next(answers)

    trace, num_told = await front_ends.speak_with_retries(speak, "A cat.", {})
    assert (trace.error, num_told) == (expected, errors.count(FULL))
    assert trace.sent == 1.0, "since it came first"
