"""Chunks are passed to the worker; probes and unreadable requests are answered immediately."""

import json
import re
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from stretto.records.chunk import Chunk, Envelope, Kept
from stretto.records.sampling import OutputForm, RingAddress
from stretto.streams.chunking import DecodingTime
from stretto.streams.layout import Segment
from stretto.triton_io import decoding_service
from stretto.triton_io.callers import Caller
from stretto.triton_io.decoding_service import ChunkReply, DecodingService
from stretto.triton_io.flow import FlowSlot, FlowTable, Outcome
from stretto.triton_io.seal import TAG
from stretto_client.shared_memory import Ring, RingSize
from tests.cuda_runtime import install_for
from tests.fakes_triton import Logger, MetricFamily, Request
from tests.patience import until
from tests.triton_io.sealing import SEAL, chunk_inputs

FORM = OutputForm("pcm_s16le", 8_000)


class Worker:
    time = DecodingTime(0.25, 0.5, 0.75)
    has_graphs = False
    has_died = False

    def __init__(self) -> None:
        self.pushed: list[tuple[Any, ...]] = []
        self.abandoned: list[str] = []
        self.kept: list[str] = []

    def push(self, *delivery: Any) -> None:
        self.pushed.append(delivery)

    def abandon(self, utterance: str) -> None:
        self.abandoned.append(utterance)

    def keep_alive(self, utterance: str) -> None:
        self.kept.append(utterance)

    def stats(self) -> dict[str, float]:
        return {"batches": 2, "windows": 7, "frames": 50, "decode_s": 0.5} | {
            "session_bytes": 9,
            "waiting_chunks": 1,
            "late": 4,
            "cancelled": 3,
        }


@pytest.fixture
def slot() -> Iterator[FlowSlot]:
    table = FlowTable.create(1, 4)
    yield table.claim()
    table.remove()


def request(slot: FlowSlot, chunk: Chunk | None, codes: np.ndarray | None = None) -> Request:
    return Request(chunk_inputs(Envelope("u", slot.address, chunk, FORM), codes))


def test_a_chunk_reaches_the_worker_with_its_codes_and_reply(slot: FlowSlot) -> None:
    worker, chunk, codes = Worker(), Chunk(0, Segment.AUDIO), np.ones((2, 3), np.int32)
    asked = request(slot, chunk, codes)
    DecodingService(worker, SEAL).accept(asked)
    ((utterance, pushed, given, reply, form, on_device, on_progress, is_kept),) = worker.pushed
    assert (utterance, pushed, form, on_device, is_kept) == ("u", chunk, FORM, None, None)
    on_progress()
    assert (slot.progress, slot.num_answered) == (1, 0)
    np.testing.assert_array_equal(given, codes)
    assert given is not codes
    reply.send(None, {})
    assert asked.sender.is_final
    assert slot.num_answered == 1
    assert slot.load.time == worker.time


def test_latency_excludes_the_time_before_a_chunk_is_wanted(slot: FlowSlot, monkeypatch: pytest.MonkeyPatch) -> None:
    now, noted = 100.0, list[float]()
    clock = SimpleNamespace(monotonic=lambda: now, sleep=time.sleep)  # `sleep` for the threads of earlier services
    monkeypatch.setattr(decoding_service, "time", clock)
    monkeypatch.setattr(FlowSlot, "note_latency", lambda _, seconds: noted.append(seconds))
    for wanted_s in (0.0, 107.0):
        reply = ChunkReply(Caller(Request({})), slot)
        reply.wanted_s, now = wanted_s, now + 4.0
        reply.send(np.zeros(3, np.float32), {})
    assert noted == [4.0, 1.0]


def test_a_gpu_ring_receives_samples_from_the_device(slot: FlowSlot, monkeypatch: pytest.MonkeyPatch) -> None:
    install_for(monkeypatch)
    ring, decoded = Ring("cuda", RingSize(2, 64)), np.full(16, 7, np.float32)  # fake memory of the decoder's GPU
    form = OutputForm(ring=RingAddress(**ring.option()))
    worker, chunk = Worker(), Chunk(0, Segment.AUDIO, is_final=True)
    asked = Request(chunk_inputs(Envelope("u", slot.address, chunk, form), np.ones((2, 3), np.int32)))
    DecodingService(worker, SEAL, "cuda:0").accept(asked)
    ((*_, reply, _, on_device, _, _),) = worker.pushed
    on_device(decoded.ctypes.data)
    reply.send(np.zeros(16, np.float32), {"index": 0, "is_final": True})
    event = json.loads(asked.sender.responses[0].array("event")[0])
    np.testing.assert_array_equal(ring.read_samples(event["ring"]), decoded)
    ring.close()


def test_gpu_ring_beyond_the_limit_is_refused_as_full(slot: FlowSlot, monkeypatch: pytest.MonkeyPatch) -> None:
    install_for(monkeypatch)
    ring, worker = Ring("cuda", RingSize(2, 64)), Worker()
    service, form = DecodingService(worker, SEAL, "cuda"), OutputForm(ring=RingAddress(**ring.option()))
    monkeypatch.setattr(service._writers._cuda._bytes, "limit", (1 << 21) - 1)
    asked = Request(chunk_inputs(Envelope("u", slot.address, Chunk(0, Segment.AUDIO), form), np.ones((2, 3), np.int32)))
    service.accept(asked)
    assert (slot.outcome, worker.pushed, asked.sender.is_final) == (Outcome.OVERLOADED, [], True)
    assert slot.reason.startswith("GPU memory: 0 bytes of rings")
    ring.close()


def test_later_chunks_use_the_ring_of_the_first_chunk(slot: FlowSlot) -> None:
    ring, worker = Ring("system", RingSize(2, 64)), Worker()
    service, form = DecodingService(worker, SEAL), OutputForm(ring=RingAddress(**ring.option()))
    for index, told in enumerate((form, None)):
        envelope = Envelope("u", slot.address, Chunk(index, Segment.AUDIO), told)
        service.accept(Request(chunk_inputs(envelope, np.ones((2, 3), np.int32))))
    first, second = (pushed[3].writer for pushed in worker.pushed)
    assert first is second is not None
    ring.close()


def test_decoder_worker_metrics_are_exported() -> None:
    DecodingService(Worker(), SEAL)
    shown = MetricFamily.made
    name = "stretto_decoder_waiting_chunks"
    until(lambda: name in shown and shown[name].value == 1)
    assert MetricFamily.made["stretto_decoder_windows_total"].value == 7


def test_text_chunk_carries_no_codes(slot: FlowSlot) -> None:
    worker = Worker()
    DecodingService(worker, SEAL).accept(request(slot, Chunk(0, Segment.TEXT, "hm")))
    assert worker.pushed[0][2] is None


def test_stub_with_a_dead_decoder_thread_exits(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []
    monkeypatch.setattr("stretto.triton_io.stub.end", ended.append)
    monkeypatch.setattr("stretto.triton_io.decoding_service.STATS_PERIOD_S", 0.001)
    worker = Worker()
    DecodingService(worker, SEAL)
    worker.has_died = True
    until(lambda: ended)
    assert ended == ["the decoder's thread has ended"]


def test_a_probe_keeps_an_utterance_open_or_ends_it_and_never_reaches_the_worker(slot: FlowSlot) -> None:
    worker = Worker()
    service = DecodingService(worker, SEAL)
    for is_gone, outcome in ((False, Outcome.OPEN), (True, Outcome.CANCELLED), (False, Outcome.CANCELLED)):
        probe = request(slot, None)
        probe.sender.client_is_gone = is_gone
        service.accept(probe)
        assert probe.sender.is_final
        assert slot.outcome is outcome
    assert (worker.pushed, worker.kept, worker.abandoned) == ([], ["u"], ["u", "u"])


NOT_SEALED = "invalid request: chunk: expected a record authenticated by this server, got another record"


def refusal(asked: Request) -> str:
    assert asked.sender.is_final
    (response,) = asked.sender.responses
    assert Logger.errors == []
    return response.error.message()


def test_refused_chunk_does_not_affect_the_victims_slot(slot: FlowSlot) -> None:
    worker = Worker()
    codes = np.ones((2, 3), np.int32)
    honest = request(slot, Chunk(0, Segment.AUDIO), codes).inputs
    for changes, message in (
        ({"chunk": honest["chunk"][TAG:]}, NOT_SEALED),
        ({"codes": codes + 1}, NOT_SEALED),
        ({"codes": codes[0]}, "invalid request: codes: expected INT32 [-1, -1], got int32 [3]"),
    ):
        asked = Request(honest | changes)
        DecodingService(worker, SEAL).accept(asked)
        assert refusal(asked) == message
    assert (slot.num_answered, slot.outcome, worker.pushed, worker.abandoned) == (0, Outcome.OPEN, [], [])


@pytest.mark.parametrize("chunk", [Chunk(0, Segment.TEXT), None])
def test_late_chunk_of_a_finished_utterance_gets_no_error(slot: FlowSlot, chunk: Chunk | None) -> None:
    late, worker = request(slot, chunk), Worker()
    slot.release()
    DecodingService(worker, SEAL).accept(late)
    assert late.sender.is_final
    assert late.sender.responses == []
    assert (worker.pushed, worker.abandoned) == ([], ["u"])


def test_decoder_failure_ends_the_utterance_with_an_incident_id(slot: FlowSlot) -> None:
    class Broken(Worker):
        def push(self, *delivery: Any) -> None:
            raise RuntimeError("/srv/stretto/codecs.py is broken")

    asked = request(slot, Chunk(0, Segment.TEXT))
    DecodingService(Broken(), SEAL).accept(asked)
    assert asked.sender.is_final
    assert asked.sender.responses == []  # the language model sends it
    assert slot.outcome is Outcome.FAILED
    assert re.fullmatch("acoustic decoder: internal error [0-9a-f]{8}", slot.reason)
    (line,) = Logger.errors
    assert "/srv/stretto/codecs.py is broken" in line
    assert slot.reason.rpartition(" ")[2] in line


def test_lost_connection_does_not_end_a_session_that_can_be_resumed(slot: FlowSlot) -> None:
    """The session has an id of its own; only the id of the connection is passed to `abandon`."""
    session, worker = slot.table.claim(), Worker()
    service, chunk = DecodingService(worker, SEAL), Chunk(1, Segment.AUDIO, kept=Kept("reply", session.address, 7))
    service.accept(request(slot, chunk))
    ((utterance, *_, is_kept),) = worker.pushed
    assert utterance == "reply"
    slot.release()
    service.accept(request(slot, chunk))
    assert (worker.abandoned, len(worker.pushed)) == (["u"], 1)
    assert is_kept()
    session.release()
    assert not is_kept()


def test_text_part_receipts_are_sent_without_acknowledging_a_chunk(slot: FlowSlot) -> None:
    worker = Worker()
    asked = Request(chunk_inputs(Envelope("u", slot.address, None, receipt=7)))
    DecodingService(worker, SEAL).accept(asked)
    (response,) = asked.sender.responses
    assert json.loads(response.array("event")[0]) == {"utterance": "u", "part": 7}
    assert asked.sender.is_final
    assert (worker.pushed, worker.kept, slot.num_answered) == ([], [], 0)
