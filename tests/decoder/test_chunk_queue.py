import math
import threading
from collections.abc import Callable

import pytest

from stretto.decoder.chunk_queue import BATCH_MEMORY, ChunkQueue, PendingChunk, Stopwatch
from stretto.records.chunk import Chunk
from stretto.streams.chunking import DecodingTime
from stretto.streams.layout import Segment
from tests.fakes import RecordedReply
from tests.patience import until


def delivery(utterance: str, index: int = 0) -> PendingChunk:
    return PendingChunk(utterance, Chunk(index, Segment.AUDIO), None, RecordedReply())


def names(deliveries: list[PendingChunk]) -> list[tuple[str, int]]:
    return [(each.utterance, each.chunk.index) for each in deliveries]


def test_chunk_queue_yields_one_chunk_per_utterance_in_turn() -> None:
    queue = ChunkQueue()
    for utterance, index in [("a", 0), ("a", 1), ("b", 0), ("a", 2), ("c", 0), ("b", 1)]:
        assert queue.put(delivery(utterance, index))
    assert names(queue.next_chunks(0)[0]) == [("a", 0), ("b", 0), ("c", 0)]
    assert names(queue.next_chunks(0, {"a"})[0]) == [("b", 1)]
    assert names(queue.next_chunks(0, {"b"})[0]) == [("a", 1)]
    assert names(queue.next_chunks(0)[0]) == [("a", 2)]
    assert len(queue) == 0


def test_abandoned_utterance_returns_its_chunks_and_is_reported_once() -> None:
    queue = ChunkQueue()
    for utterance, index in [("a", 0), ("b", 0), ("a", 1)]:
        queue.put(delivery(utterance, index))
    assert names(queue.abandon("a")) == [("a", 0), ("a", 1)]
    deliveries, abandoned = queue.next_chunks(0)
    assert (names(deliveries), abandoned) == ([("b", 0)], ["a"])
    assert queue.next_chunks(0) == ([], [])


def test_closed_queue_rejects_new_chunks_and_can_be_cleared() -> None:
    queue = ChunkQueue()
    queue.put(delivery("a"))
    queue.close()
    assert not queue.put(delivery("b"))
    assert not queue.is_finished
    assert names(queue.clear()) == [("a", 0)]
    assert queue.is_finished


def test_longest_waiting_chunks_come_first() -> None:
    queue = ChunkQueue()
    for utterance, index in [("a", 0), ("a", 1), ("b", 0)]:
        queue.put(delivery(utterance, index))
    assert names(queue.next_chunks(0, {"b"})[0]) == [("a", 0)]
    assert names(queue.next_chunks(0)[0]) == [("b", 0), ("a", 1)]


@pytest.mark.parametrize(
    "act",
    [lambda queue: queue.put(delivery("a")), lambda queue: queue.abandon("a"), lambda queue: queue.close()],
    ids=["chunk", "abandoned", "closed"],
)
def test_empty_chunk_queue_blocks_until_an_event(act: Callable[[ChunkQueue], object]) -> None:
    queue = ChunkQueue()
    assert queue.next_chunks(0.05) == ([], [])
    waiting = threading.Thread(target=queue.next_chunks, args=(threading.TIMEOUT_MAX,), daemon=True)
    waiting.start()
    until(lambda: queue._changed._waiters)  # type: ignore[attr-defined]
    act(queue)
    until(lambda: not waiting.is_alive())


def measured(*batches: tuple[int, float], num_context_frames: int = 0, longest_s: float = math.inf) -> DecodingTime:
    """Return what a stopwatch measures with these numbers of frames and times of batches."""
    stopwatch = Stopwatch(num_context_frames, longest_s)
    for num_frames, spent_s in batches:
        stopwatch.record(num_frames, spent_s)
    return stopwatch.measured


def test_times_of_batches_and_frames_are_told_apart() -> None:
    time = measured(*((frames, 0.5 + 0.25 * frames) for frames in (1, 4, 12, 96)), num_context_frames=10)
    assert [time.batch_s, time.window_s, time.frame_s] == pytest.approx([0.5, 2.5, 0.25])


def test_a_frame_has_its_share_of_full_batches() -> None:
    time = measured(*((frames, 0.5 + 0.25 * frames) for frames in (1, 4, 12, 96)), longest_s=2.0)
    assert [time.batch_s, time.frame_s] == pytest.approx([0.5, 0.25 * 1.25])


@pytest.mark.parametrize(
    "batches",
    [[(4, 2.0)], [(4, 2.0), (4, 3.0), (4, 1.0)], [(1, 0.1), (12, 10.7)]],
    ids=["one batch", "equal sizes", "small batches that are faster"],
)
def test_whole_time_is_of_frames_if_no_part_is_of_batches(batches: list[tuple[int, float]]) -> None:
    time = measured(*batches)
    assert time.batch_s == 0
    assert time.frame_s == pytest.approx(0.5, rel=0.02)


def test_stopwatch_forgets_earlier_batches() -> None:
    time = measured(*[(4, 400.0)] * 3, *[(4, 4.0)] * (20 * BATCH_MEMORY))
    assert time.frame_s == pytest.approx(1.0, rel=1e-3)
