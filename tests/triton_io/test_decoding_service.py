"""Chunks go to the worker with their reply; probes and what cannot be read are answered on the spot."""

import json
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from stretto.records.chunk import Chunk
from stretto.records.delivery import OutputForm
from stretto.records.envelope import Envelope
from stretto.streams.segment import Segment
from stretto.triton_io.decoding_service import DecodingService
from stretto.triton_io.flow import FlowSlot, FlowTable, Outcome

from tests.fakes_triton import Logger, MetricFamily, Request

FORM = OutputForm("pcm_s16le", 8_000)


class Worker:
    pace_s = 0.25

    def __init__(self) -> None:
        self.pushed: list[tuple[Any, ...]] = []
        self.abandoned: list[str] = []

    def push(self, *delivery: Any) -> None:
        self.pushed.append(delivery)

    def abandon(self, utterance: str) -> None:
        self.abandoned.append(utterance)

    def stats(self) -> dict[str, float]:
        return {"batches": 2, "windows": 7, "frames": 50, "decode_s": 0.5} | {
            "session_bytes": 9,
            "waiting_chunks": 1,
            "cancelled": 3,
        }


@pytest.fixture
def slot() -> Iterator[FlowSlot]:
    table = FlowTable.create(1, 4)
    yield table.claim()
    table.remove()


def request(slot: FlowSlot, chunk: Chunk | None, codes: np.ndarray | None = None) -> Request:
    record = json.dumps(Envelope("u", slot.address, chunk, FORM).to_record()).encode()
    return Request({"chunk": np.frombuffer(record, np.uint8)} | ({} if codes is None else {"codes": codes}))


def test_a_chunk_reaches_the_worker_with_its_codes_and_reply(slot: FlowSlot) -> None:
    worker, chunk, codes = Worker(), Chunk(0, Segment.AUDIO), np.ones((2, 3), np.int32)
    asked = request(slot, chunk, codes)
    DecodingService(worker).accept(asked)
    ((utterance, pushed, given, reply, form),) = worker.pushed
    assert (utterance, pushed, form) == ("u", chunk, FORM)
    np.testing.assert_array_equal(given, codes)
    assert given is not codes
    reply.send(None, {})
    assert asked.sender.is_final
    assert slot.num_answered == 1
    assert slot.load.pace_s == 0.25


def test_the_workers_figures_are_shown() -> None:
    DecodingService(Worker())
    deadline = time.monotonic() + 60
    while (shown := MetricFamily.made.get("stretto_decoder_waiting_chunks")) is None or shown.value != 1:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert MetricFamily.made["stretto_decoder_windows_total"].value == 7


def test_a_text_chunk_has_no_codes(slot: FlowSlot) -> None:
    worker = Worker()
    DecodingService(worker).accept(request(slot, Chunk(0, Segment.TEXT, "hm")))
    assert worker.pushed[0][2] is None


@pytest.mark.parametrize("is_gone", [False, True])
def test_a_probe_never_reaches_the_worker(slot: FlowSlot, is_gone: bool) -> None:
    worker, probe = Worker(), request(slot, None)
    probe.sender.client_is_gone = is_gone
    DecodingService(worker).accept(probe)
    assert probe.sender.is_final
    assert worker.pushed == []
    assert worker.abandoned == (["u"] if is_gone else [])
    assert (slot.outcome is Outcome.CANCELLED) is is_gone


def test_a_request_that_cannot_be_read_is_answered_and_logged() -> None:
    asked = Request({"chunk": np.frombuffer(b"[]", np.uint8)})
    DecodingService(Worker()).accept(asked)
    assert asked.sender.is_final
    assert asked.sender.responses[0].error.message().startswith("failed: acoustic decoder: TypeError")
    assert len(Logger.errors) == 1
