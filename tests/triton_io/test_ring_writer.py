"""Samples enter the ring in order; a full ring blocks only replies of its own utterance."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stretto.errors import Cancelled, InvalidRequest
from stretto.records.sampling import RingAddress
from stretto.triton_io import ring as writers
from stretto.triton_io.flow import FlowSlot, FlowTable
from stretto.triton_io.ring import RingWriter, RingWriters
from stretto_client.shared_memory import Ring, RingSize
from tests.cuda_runtime import install_for
from tests.patience import until


@dataclass
class Reply:
    """Reply that records its outcome."""

    events: list[dict[str, Any]] = field(default_factory=list)
    pcm: np.ndarray | None = None
    error: BaseException | None = None
    is_unwanted: bool = False

    def deliver(self, pcm: np.ndarray | None, event: dict[str, Any]) -> None:
        assert not self.events
        assert self.error is None
        self.pcm = pcm
        self.events.append(event)

    def fail(self, error: BaseException) -> None:
        assert not self.events
        self.error = error

    def is_cancelled(self) -> bool:
        return self.is_unwanted


@pytest.fixture
def slot(tmp_path: Path) -> FlowSlot:
    return FlowTable.create(1, 4, tmp_path).claim()


@pytest.fixture
def ring() -> Iterator[Ring]:
    made = Ring("system", RingSize(2, 64))
    yield made
    made.close()


def opened(writers: RingWriters, utterance: str, ring: Ring, slot: FlowSlot) -> RingWriter:
    writers.open(utterance, RingAddress(**ring.option()), slot)
    writer = writers.get(utterance)
    assert writer is not None
    return writer


@pytest.fixture
def all_writers() -> RingWriters:
    return RingWriters("cuda")


@pytest.fixture
def writer(all_writers: RingWriters, ring: Ring, slot: FlowSlot) -> RingWriter:
    return opened(all_writers, "u", ring, slot)


def told(index: int = 0, is_final: bool = False) -> dict[str, Any]:
    return {"index": index, "is_final": is_final}


def samples(value: int) -> np.ndarray:
    return np.full(16, value, np.float32)


def test_ring_replies_are_sent_in_order_as_slots_are_released(writer: RingWriter, ring: Ring) -> None:
    replies = [Reply() for _ in range(5)]
    for index, reply in enumerate(replies):
        writer.offer(reply, None if index == 3 else samples(index), told(index))
    assert [len(reply.events) for reply in replies] == [1, 1, 0, 0, 0]
    for index in (0, 1, 2, 4):
        until(lambda index=index: bool(replies[index].events))
        (event,) = replies[index].events
        assert event["index"] == index
        np.testing.assert_array_equal(ring.read_samples(event["ring"]), samples(index))
    assert replies[3].events == [told(3)]


def test_samples_too_large_for_the_ring_are_sent_inline_in_order(writer: RingWriter, ring: Ring) -> None:
    replies, large = [Reply() for _ in range(4)], np.arange(33, dtype=np.float32)
    for reply, pcm in zip(replies, (samples(0), samples(1), samples(2), large), strict=True):
        writer.offer(reply, pcm, told())
    assert not replies[3].events
    for reply in replies[:3]:
        until(lambda reply=reply: bool(reply.events))
        ring.read_samples(reply.events[0]["ring"])
    until(lambda: bool(replies[3].events))
    assert replies[3].events == [told()]
    np.testing.assert_array_equal(replies[3].pcm, large)


def test_disconnect_cancels_pending_ring_replies(writer: RingWriter) -> None:
    replies = [Reply() for _ in range(4)]
    for reply in replies:
        writer.offer(reply, samples(1), told())
    replies[2].is_unwanted = True
    until(lambda: isinstance(replies[3].error, Cancelled))
    assert isinstance(replies[2].error, Cancelled)


def test_ring_writer_times_out_when_the_client_stops_reading(
    writer: RingWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writers, "STALL_S", 0.05)
    replies = [Reply() for _ in range(3)]
    for reply in replies:
        writer.offer(reply, samples(1), told())
    until(lambda: replies[2].error is not None)
    assert str(replies[2].error) == "options.output.ring: expected slots released within 0.05 s, got none"


def test_ring_is_released_after_its_utterance(
    all_writers: RingWriters, writer: RingWriter, slot: FlowSlot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writers, "SWEEP_S", 0.01)
    assert len(all_writers) == 1
    slot.release()
    until(lambda: len(all_writers) == 0)
    with pytest.raises(Cancelled):
        writer.offer(Reply(), samples(1), told())


def test_last_event_frees_the_ring(all_writers: RingWriters, slot: FlowSlot, monkeypatch: pytest.MonkeyPatch) -> None:
    """The decoder has closed its end by then, and the client can still read the last samples."""
    cuda = install_for(monkeypatch)
    ring = Ring("cuda", RingSize(2, 64))
    writer = opened(all_writers, "u", ring, slot)

    class Freeing(Reply):
        """Client that frees the ring at the last event, once it has read its samples."""

        def deliver(self, pcm: np.ndarray | None, event: dict[str, Any]) -> None:
            super().deliver(pcm, event)
            assert (all_writers._cuda.num_bytes == 0) == event["is_final"]
            np.testing.assert_array_equal(ring.read_samples(event["ring"]), samples(event["index"]))
            if event["is_final"]:
                ring.close()

    writer.offer(Freeing(), samples(0), told(0))
    writer.offer(Freeing(), samples(1), told(1, is_final=True))
    assert cuda.is_unused
    with pytest.raises(Cancelled):
        writer.offer(Reply(), samples(2), told(2))
    monkeypatch.setattr(writers, "SWEEP_S", 0.0)
    slot.release()
    until(lambda: len(all_writers) == 0)


def test_gpu_ring_is_reclaimed_when_its_client_disconnects_or_never_reads(
    all_writers: RingWriters, slot: FlowSlot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then, it delays no other ring."""
    cuda = install_for(monkeypatch)
    monkeypatch.setattr(writers, "SWEEP_S", 0.0)
    rings = [Ring("cuda", RingSize(2, 64)) for _ in range(2)]
    stuck = opened(all_writers, "u", rings[0], slot)
    replies = [Reply() for _ in range(3)]
    for index, reply in enumerate(replies):
        stuck.offer(reply, samples(index), told(index))
    other = opened(all_writers, "v", rings[1], slot.table.claim())
    for index in range(5):
        reply = Reply()
        other.offer(reply, samples(index), told(index, is_final=index == 4))
        np.testing.assert_array_equal(rings[1].read_samples(reply.events[0]["ring"]), samples(index))
    assert (stuck.is_waiting, all_writers._cuda.num_bytes) == (True, 1 << 21)
    slot.release()  # as the language model does when the client has disconnected, or after the ring's timeout
    until(lambda: all_writers._cuda.num_bytes == 0)
    assert isinstance(replies[2].error, Cancelled)
    for ring in rings:
        ring.close()
    assert cuda.is_unused


def test_waiting_samples_are_copied_from_the_host(
    all_writers: RingWriters, slot: FlowSlot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By then, the copy on the device has been freed."""
    install_for(monkeypatch)
    ring, decoded = Ring("cuda", RingSize(1, 64)), samples(7)
    writer = opened(all_writers, "u", ring, slot)
    replies = [Reply(), Reply()]
    for reply in replies:
        writer.offer(reply, samples(1), told(), decoded.ctypes.data)
    np.testing.assert_array_equal(ring.read_samples(replies[0].events[0]["ring"]), decoded)
    until(lambda: bool(replies[1].events))
    np.testing.assert_array_equal(ring.read_samples(replies[1].events[0]["ring"]), samples(1))
    writer.close()
    ring.close()


class Unanswerable(Reply):
    """Reply whose failure cannot be reported either."""

    def fail(self, error: BaseException) -> None:
        super().fail(error)
        raise OSError("the pipe is gone")


def test_failing_ring_release_does_not_block_other_rings(
    all_writers: RingWriters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same holds for a reply that cannot be ended."""
    monkeypatch.setattr(writers, "SWEEP_S", 0.0)
    table = FlowTable.create(1, 4, tmp_path)
    rings = {name: Ring("system", RingSize(2, 64)) for name in ("bad", "good")}
    slots = {name: table.claim() for name in rings}
    made = {name: opened(all_writers, name, ring, slots[name]) for name, ring in rings.items()}
    bad, good = [Reply(), Reply(), Unanswerable(), Reply()], [Reply() for _ in range(4)]
    for index in range(4):
        made["bad"].offer(bad[index], samples(index), told())
        made["good"].offer(good[index], samples(index), told())

    def closing() -> None:
        raise OSError("a bad descriptor")

    monkeypatch.setattr(made["bad"]._ring, "close", closing)
    slots["bad"].release()
    until(lambda: bad[3].error is not None)
    until(lambda: len(all_writers) == 1)
    for reply in good:
        until(lambda reply=reply: bool(reply.events))
        rings["good"].read_samples(reply.events[0]["ring"])
    for ring in rings.values():
        ring.close()


def test_utterance_has_a_single_ring_writer(
    all_writers: RingWriters, writer: RingWriter, ring: Ring, slot: FlowSlot
) -> None:
    assert opened(all_writers, "u", ring, slot) is writer
    assert all_writers.get("v") is None
    with pytest.raises(InvalidRequest):
        all_writers.open("v", RingAddress("stretto_ring_0000000000000000"), slot)
