"""What is looked at again and again: as long as somebody waits, and no longer."""

import asyncio

import pytest
from stretto.triton_io.ticking import ticking, until


async def test_it_looks_until_the_block_is_left() -> None:
    looks: list[int] = []
    with ticking(lambda: looks.append(1), 0.001):
        await asyncio.wait_for(until(lambda: len(looks) >= 3, 0.001), 60)
    seen = len(looks)
    await asyncio.sleep(0.02)
    assert len(looks) == seen


async def test_a_condition_that_holds_is_asked_once() -> None:
    asked: list[int] = []
    await until(lambda: asked.append(1) is None, 3600)
    assert asked == [1]


async def test_what_a_condition_raises_is_raised() -> None:
    answers = [False, False]
    with pytest.raises(IndexError):
        await asyncio.wait_for(until(lambda: answers.pop(), 0.001), 60)
