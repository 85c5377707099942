"""Coroutines that run for threads without an event loop."""

import asyncio
import threading

import pytest

from stretto.triton_io.stub import EventLoop
from tests.patience import PATIENCE_S


async def double(number: int) -> int:
    await asyncio.sleep(0)
    return 2 * number


async def fail() -> None:
    raise ValueError("no")


def test_a_result_and_an_exception_reach_the_caller() -> None:
    loop = EventLoop("test")
    assert loop.run(double(4)) == 8
    with pytest.raises(ValueError, match="no"):
        loop.run(fail())
    loop.close()


def test_failures_of_unawaited_coroutines_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    loop = EventLoop("test")
    loop.start(fail())
    loop.run(asyncio.sleep(0.05))
    loop.close()
    assert "a coroutine failed" in caplog.text


def test_closing_lets_running_coroutines_clean_up() -> None:
    loop = EventLoop("test")
    begun, cleaned = threading.Event(), threading.Event()

    async def serve() -> None:
        try:
            begun.set()
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            cleaned.set()

    loop.start(serve())
    assert begun.wait(PATIENCE_S)
    loop.close()
    assert cleaned.is_set()


async def stop_the_loop() -> None:
    asyncio.get_running_loop().stop()


def test_ended_event_loop_ends_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    ended, reasons = threading.Event(), list[str]()
    monkeypatch.setattr("stretto.triton_io.stub.end", lambda reason: (reasons.append(reason), ended.set()))
    EventLoop("language model").start(stop_the_loop())
    assert ended.wait(PATIENCE_S)
    assert reasons == ["the event loop of the language model has ended"]


def test_closed_event_loop_does_not_end_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    reasons: list[str] = []
    monkeypatch.setattr("stretto.triton_io.stub.end", reasons.append)
    EventLoop("language model").close()
    assert reasons == []
