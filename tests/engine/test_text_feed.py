"""Streamed text reaches the engine in order, after the reply has started, and always with an end."""

import asyncio
from typing import Any

import numpy as np
import pytest

from stretto.engine.feeds import MAX_LAG_S, FrameFeed, TextFeed
from stretto.engine.reply_stats import Stats
from stretto.engine.tracks import Track, rows_of
from stretto.errors import Closing, InvalidRequest

pytestmark = pytest.mark.asyncio


class FakeEngine:
    """Fake client of the engine that records the text updates sent for a known reply."""

    def __init__(self) -> None:
        self.ids = {"r"}
        self.told: list[tuple[str, list[int], bool]] = []
        self.aborted = asyncio.Event()

    def has(self, request_id: str) -> bool:
        return request_id in self.ids

    def append(self, request_id: str, ids: np.ndarray, is_last: bool) -> None:
        self.told.append((request_id, ids.tolist(), is_last))

    def abort(self, request_id: str) -> None:
        self.aborted.set()


def text(engine: Any, room: int = 10, patience_s: float = 60.0, longest_s: float = 600.0) -> TextFeed:
    track = Track(slice(0, 1), 5, rows_of([8, 9], 1), 0, is_live=True, is_open=True)
    return TextFeed(engine, "r", track, room, patience_s, longest_s)


async def test_text_ids_are_sent_in_order_once_the_engine_has_the_request() -> None:
    engine = FakeEngine()
    written = text(engine)
    written.write([1, 2], False)
    assert engine.told == []
    written.begin()
    written.write([3], False)
    written.write([4], True)
    written.begin()
    assert {name for name, _, _ in engine.told} == {"r"}
    assert [token for _, ids, _ in engine.told for token in ids] == [1, 2, 3, 4]
    assert [is_last for _, _, is_last in engine.told] == [False] * (len(engine.told) - 1) + [True]
    written.end()


async def test_text_after_the_end_or_beyond_capacity_is_refused() -> None:
    written = text(FakeEngine(), room=3)
    with pytest.raises(InvalidRequest, match="text: expected at most 3 more tokens, got 4"):
        written.write([1] * 4, False)
    written.write([1, 2, 3], False)
    with pytest.raises(InvalidRequest, match="text: expected at most 0 more tokens, got 1"):
        written.write([1, 7], True)
    written.write([7], True)  # the end, which always has room
    with pytest.raises(InvalidRequest, match="text: expected no more text, because it is complete, got 1 tokens"):
        written.write([1], False)


async def test_text_for_an_ended_reply_is_not_sent() -> None:
    engine = FakeEngine()
    written = text(engine)
    written.begin()
    engine.ids.clear()
    written.write([1], True)
    assert engine.told == []


async def test_stalled_text_input_aborts_the_reply() -> None:
    engine = FakeEngine()
    written = text(engine, patience_s=0.0)
    await engine.aborted.wait()
    with pytest.raises(InvalidRequest, match="text: expected more text, or its end, within 0 s, got none"):
        written.check()
    complete = text(engine)
    complete.write([], True)
    complete.check()


async def test_unfinished_text_is_aborted_despite_empty_writes() -> None:
    engine = FakeEngine()
    written = text(engine, longest_s=0.0)
    written.write([], False)
    await engine.aborted.wait()
    with pytest.raises(
        InvalidRequest, match="text: expected the complete text within 0 s of its start, got only a part"
    ):
        written.check()


async def test_text_feed_blocks_after_its_last_token_until_complete() -> None:
    written = text(FakeEngine())
    assert [written.is_awaited(rows) for rows in (0, 2, 3)] == [False, False, True]
    written.write([7], False)
    assert [written.is_awaited(rows) for rows in (3, 4)] == [False, True]
    written.write([], True)
    assert not written.is_awaited(4)
    written.end()


class Session:
    """Live audio with two codebooks and 80 ms per frame, on its own clock."""

    def __init__(self, room: int = 100) -> None:
        self.now, self.engine, self.stats = 100.0, FakeEngine(), Stats()
        given = ("r", 2, room, 0.08, self.stats.note_tick)
        self.feed = FrameFeed(self.engine, *given, lambda: self.now)  # type: ignore[arg-type]

    async def write(self, num_frames: int, is_last: bool = False) -> None:
        frames = np.arange(2 * num_frames, dtype=np.int32).reshape(-1, 2)
        self.feed.write_frames(frames, is_last, seconds=0.08 * num_frames)


async def test_live_frames_are_sent_to_the_engine_up_to_the_limit() -> None:
    session = Session(room=5)
    session.feed.begin()
    await session.write(3)
    await session.write(4)
    await session.write(4, is_last=True)
    assert session.engine.told == [("r", [*range(6)], False), ("r", [*range(4)], False), ("r", [], True)]
    assert session.feed.num_frames == 5
    session.feed.end()


async def test_live_session_receipt_waits_until_the_audio_is_consumed() -> None:
    session = Session()
    await session.write(30)
    session.feed.note_rows(1)  # the first row precedes the first frame
    assert session.feed.lag_frames == 30
    waiting = asyncio.ensure_future(session.feed.wait_until_read(25))
    session.feed.note_rows(5)
    await asyncio.sleep(0)
    assert not waiting.done()
    session.feed.note_rows(6)
    assert await waiting == 25
    assert not session.feed.is_awaited(30)
    assert session.feed.is_awaited(31)
    waiting = asyncio.ensure_future(session.feed.wait_until_read(0))
    await asyncio.sleep(0)
    session.feed.end()
    await waiting


async def test_live_session_lagging_its_audio_ends() -> None:
    """Frames that arrive together are due one after the other."""
    session = Session()
    await session.write(90)  # 7.2 s of a file
    session.now += MAX_LAG_S - 0.1
    await session.write(1)
    session.feed.note_rows(61)
    session.now += MAX_LAG_S - 0.2  # 9.7 s, and the oldest unread frame was due after 4.8 s
    await session.write(1)
    assert session.stats.live_late_frames_total > 0
    session.now += 0.2
    with pytest.raises(Closing, match=r"the session is 5\.1 s behind its audio, of at most 5 s; try again"):
        await session.write(1)
    await session.engine.aborted.wait()
    with pytest.raises(Closing):
        session.feed.check()
    session.feed.end()


async def test_late_frames_are_counted() -> None:
    """Frames that are read before they are due are not late."""
    session = Session()
    await session.write(5)  # due after 0, 80, 160, 240 and 320 ms
    session.now += 0.03
    session.feed.note_rows(3)
    session.now += 0.06 + 0.16
    session.feed.note_rows(5)
    counts = vars(session.stats)
    found = [counts[f"live_ticks_{name}"] for name in ("20ms_total", "40ms_total", "80ms_total", "total")]
    assert found == [2, 3, 3, 4]
    assert session.stats.live_late_frames_total == 1
    assert session.stats.live_tick_seconds_total == pytest.approx(0.03 + 0 + 0.09 + 0.01)
    session.feed.end()


async def test_session_without_audio_times_out() -> None:
    session = Session()
    session.feed._patience_s = 0.0
    await session.write(1)
    await session.engine.aborted.wait()
    with pytest.raises(InvalidRequest, match="pcm_in: expected more audio, or its end, within 0 s, got none"):
        session.feed.check()
    session.feed.end()


async def test_parts_without_frames_do_not_keep_a_session_alive() -> None:
    session = Session()
    await session.write(1)
    timer = session.feed._timer
    await session.write(0)
    assert session.feed._timer is timer
    await session.write(1)
    assert session.feed._timer is not timer
    await session.write(0, is_last=True)
    assert session.feed._timer.cancelled()  # type: ignore[union-attr]
    session.feed.end()
