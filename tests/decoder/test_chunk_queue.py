import threading
import time

from stretto.decoder.chunk_queue import Delivery, Mailbox
from stretto.records.chunk import Chunk
from stretto.streams.segment import Segment

from tests.fakes import RecordedReply


def delivery(utterance: str, index: int = 0) -> Delivery:
    return Delivery(utterance, Chunk(index, Segment.AUDIO), None, RecordedReply())


def names(deliveries: list[Delivery]) -> list[tuple[str, int]]:
    return [(each.utterance, each.chunk.index) for each in deliveries]


def test_each_utterance_gives_one_chunk_at_a_time_in_turn() -> None:
    mailbox = Mailbox()
    for utterance, index in [("a", 0), ("a", 1), ("b", 0), ("a", 2), ("c", 0), ("b", 1)]:
        assert mailbox.put(delivery(utterance, index))
    assert names(mailbox.take(0)[0]) == [("a", 0), ("b", 0), ("c", 0)]
    assert names(mailbox.take(0, {"a"})[0]) == [("b", 1)]
    assert names(mailbox.take(0, {"b"})[0]) == [("a", 1)]
    assert names(mailbox.take(0)[0]) == [("a", 2)]
    assert len(mailbox) == 0


def test_an_abandoned_utterance_gives_its_chunks_back_and_is_named_once() -> None:
    mailbox = Mailbox()
    for utterance, index in [("a", 0), ("b", 0), ("a", 1)]:
        mailbox.put(delivery(utterance, index))
    assert names(mailbox.abandon("a")) == [("a", 0), ("a", 1)]
    deliveries, abandoned = mailbox.take(0)
    assert (names(deliveries), abandoned) == ([("b", 0)], ["a"])
    assert mailbox.take(0) == ([], [])


def test_a_closed_mailbox_takes_nothing_but_can_be_emptied() -> None:
    mailbox = Mailbox()
    mailbox.put(delivery("a"))
    mailbox.close()
    assert not mailbox.put(delivery("b"))
    assert not mailbox.is_finished
    assert names(mailbox.clear()) == [("a", 0)]
    assert mailbox.is_finished


def test_an_empty_mailbox_waits_and_a_chunk_ends_the_wait() -> None:
    mailbox = Mailbox()
    begun = time.monotonic()
    assert mailbox.take(0.05) == ([], [])
    assert time.monotonic() - begun >= 0.05
    threading.Timer(0.05, lambda: mailbox.put(delivery("a"))).start()
    assert names(mailbox.take(10)[0]) == [("a", 0)]
    assert time.monotonic() - begun < 5
