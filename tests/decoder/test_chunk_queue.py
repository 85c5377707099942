import threading

from stretto.decoder.chunk_queue import ChunkQueue, PendingChunk
from stretto.records.chunk import Chunk
from stretto.streams.layout import Segment
from tests.fakes import RecordedReply


def delivery(utterance: str, index: int = 0) -> PendingChunk:
    return PendingChunk(utterance, Chunk(index, Segment.AUDIO), None, RecordedReply())


def names(deliveries: list[PendingChunk]) -> list[tuple[str, int]]:
    return [(each.utterance, each.chunk.index) for each in deliveries]


def test_each_utterance_gives_one_chunk_at_a_time_in_turn() -> None:
    queue = ChunkQueue()
    for utterance, index in [("a", 0), ("a", 1), ("b", 0), ("a", 2), ("c", 0), ("b", 1)]:
        assert queue.put(delivery(utterance, index))
    assert names(queue.next_chunks(0)[0]) == [("a", 0), ("b", 0), ("c", 0)]
    assert names(queue.next_chunks(0, {"a"})[0]) == [("b", 1)]
    assert names(queue.next_chunks(0, {"b"})[0]) == [("a", 1)]
    assert names(queue.next_chunks(0)[0]) == [("a", 2)]
    assert len(queue) == 0


def test_an_abandoned_utterance_gives_its_chunks_back_and_is_named_once() -> None:
    queue = ChunkQueue()
    for utterance, index in [("a", 0), ("b", 0), ("a", 1)]:
        queue.put(delivery(utterance, index))
    assert names(queue.abandon("a")) == [("a", 0), ("a", 1)]
    deliveries, abandoned = queue.next_chunks(0)
    assert (names(deliveries), abandoned) == ([("b", 0)], ["a"])
    assert queue.next_chunks(0) == ([], [])


def test_a_closed_queue_takes_nothing_but_can_be_emptied() -> None:
    queue = ChunkQueue()
    queue.put(delivery("a"))
    queue.close()
    assert not queue.put(delivery("b"))
    assert not queue.is_finished
    assert names(queue.clear()) == [("a", 0)]
    assert queue.is_finished


def test_an_empty_queue_waits_and_a_chunk_ends_the_wait() -> None:
    queue = ChunkQueue()
    assert queue.next_chunks(0.05) == ([], [])
    threading.Timer(0.05, lambda: queue.put(delivery("a"))).start()
    assert names(queue.next_chunks(120)[0]) == [("a", 0)]
