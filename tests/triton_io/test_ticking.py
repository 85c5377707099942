"""Periodic polls run as long as something waits for them."""

import asyncio
from typing import Any

import pytest

from stretto.triton_io.stub import ticking, wait_until
from tests.patience import PATIENCE_S


async def test_ticking_calls_until_the_block_exits() -> None:
    looks: list[int] = []
    with ticking(lambda: looks.append(1), 0.001):
        await asyncio.wait_for(wait_until(lambda: len(looks) >= 3, 0.001), PATIENCE_S)
    seen = len(looks)
    await asyncio.sleep(0.02)
    assert len(looks) == seen


async def test_true_condition_is_evaluated_once() -> None:
    asked: list[int] = []
    await wait_until(lambda: asked.append(1) is None, 3600)
    assert asked == [1]


async def test_exceptions_in_a_wait_condition_propagate() -> None:
    answers = [False, False]
    with pytest.raises(IndexError):
        await asyncio.wait_for(wait_until(lambda: answers.pop(), 0.001), PATIENCE_S)


async def test_timers_with_equal_periods_wake_together(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, woken_at = asyncio.get_running_loop(), list[float]()
    call_at = loop.call_at

    def noted(when: float, *arguments: Any, **named: Any) -> asyncio.TimerHandle:
        woken_at.append(when)
        return call_at(when, *arguments, **named)

    monkeypatch.setattr(loop, "call_at", noted)
    for _ in range(3):
        with ticking(lambda: None, 3600.0):
            pass
    assert len(woken_at) == 3
    assert len(set(woken_at)) == 1
