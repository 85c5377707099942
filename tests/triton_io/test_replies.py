"""A chunk is answered once, with the final flag, and the answer is counted in its slot."""

import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import pytest

from stretto.errors import Cancelled, Closing, InvalidRequest, Overloaded
from stretto.triton_io.callers import Caller
from stretto.triton_io.decoding_service import ChunkReply
from stretto.triton_io.flow import FlowSlot, FlowTable, Outcome
from tests.fakes_triton import InferenceResponse, Request, ResponseSender
from tests.patience import PATIENCE_S


@pytest.fixture
def slot(tmp_path: Path) -> FlowSlot:
    return FlowTable.create(1, 4, tmp_path).claim()


def test_samples_and_event_are_sent_with_the_final_flag(slot: FlowSlot) -> None:
    request = Request({})
    ChunkReply(Caller(request), slot).send(np.ones(3, np.float32), {"text": "é"})
    (response,) = request.sender.responses
    assert request.sender.is_final
    np.testing.assert_array_equal(response.array("pcm"), np.ones(3, np.float32))
    assert json.loads(response.array("event")[0]) == {"text": "é"}
    assert (slot.num_answered, slot.outcome) == (1, Outcome.OPEN)


def test_16_bit_samples_use_a_separate_tensor(slot: FlowSlot) -> None:
    request = Request({})
    ChunkReply(Caller(request), slot).send(np.arange(3, dtype=np.int16), {})
    (response,) = request.sender.responses
    assert response.array("pcm") is None
    np.testing.assert_array_equal(response.array("pcm16"), np.arange(3, dtype=np.int16))


def test_decoder_latency_is_reported_to_the_language_model(slot: FlowSlot) -> None:
    replies = [ChunkReply(Caller(Request({})), slot) for _ in range(2)]
    replies[0].send(None, {})
    assert slot.load.latency_s == 0
    time.sleep(0.02)
    replies[1].send(np.ones(3, np.float32), {})
    assert slot.load.latency_s >= 0.02


def test_text_only_chunk_reply_has_no_samples(slot: FlowSlot) -> None:
    request = Request({})
    ChunkReply(Caller(request), slot).send(None, {})
    assert request.sender.responses[0].array("pcm") is None


@pytest.mark.parametrize(
    ("error", "outcome", "reason"),
    [
        (RuntimeError("/srv/codec is broken"), Outcome.FAILED, "acoustic decoder: internal error [0-9a-f]{8}"),
        (KeyError(), Outcome.FAILED, "acoustic decoder: internal error [0-9a-f]{8}"),
        (InvalidRequest("codes", "[7, T]", "[1, T]"), Outcome.FAILED, r"codes: expected \[7, T\], got \[1, T\]"),
        (InvalidRequest("options.output.ring.name", "a", "b"), Outcome.REFUSED, r"options.*: expected a, got b"),
        (Closing("the decoder is stopping"), Outcome.CLOSING, "the decoder is stopping"),
        (Overloaded("256 utterances are being decoded"), Outcome.OVERLOADED, "256 utterances are being decoded"),
    ],
)
def test_failures_are_reported_to_the_language_model(
    slot: FlowSlot, error: Exception, outcome: Outcome, reason: str
) -> None:
    request = Request({})
    ChunkReply(Caller(request), slot).fail(error)
    assert request.sender.is_final
    assert request.sender.responses == []
    assert (slot.outcome, slot.num_answered) == (outcome, 1)
    assert re.fullmatch(reason, slot.reason)


def test_client_disconnect_is_reported_to_the_language_model(slot: FlowSlot) -> None:
    request = Request({})
    reply = ChunkReply(Caller(request), slot)
    assert not reply.is_cancelled()
    request.sender.client_is_gone = True
    assert reply.is_cancelled()
    assert slot.outcome is Outcome.CANCELLED
    reply.fail(Cancelled("the client cancelled the request"))
    assert request.sender.is_final
    assert request.sender.responses == []


def test_chunk_reply_is_cancelled_after_a_failed_chunk(slot: FlowSlot) -> None:
    ChunkReply(Caller(Request({})), slot).fail(RuntimeError("no codec"))
    assert ChunkReply(Caller(Request({})), slot).is_cancelled()


def test_answering_a_chunk_twice_raises(slot: FlowSlot) -> None:
    reply = ChunkReply(Caller(Request({})), slot)
    reply.send(None, {})
    with pytest.raises(AssertionError, match="answered twice"):
        reply.send(None, {})


def test_failure_after_a_chunk_reply_ends_the_utterance(slot: FlowSlot) -> None:
    reply = ChunkReply(Caller(Request({})), slot)
    reply.send(None, {})
    reply.fail(RuntimeError("late"))
    assert (slot.outcome, slot.num_answered) == (Outcome.FAILED, 1)


def test_unsendable_samples_fail_the_utterance(slot: FlowSlot) -> None:
    request = Request({})
    reply = ChunkReply(Caller(request), slot)
    with pytest.raises(AssertionError, match="float64"):
        reply.send(np.zeros(3), {})
    reply.fail(RuntimeError("float64"))
    assert request.sender.is_final
    assert slot.outcome is Outcome.FAILED


@pytest.mark.parametrize("is_gone", [False, True])
def test_probe_reply_sends_no_response(slot: FlowSlot, is_gone: bool) -> None:
    request = Request({})
    request.sender.client_is_gone = is_gone
    ChunkReply(Caller(request), slot).close()
    assert request.sender.is_final
    assert request.sender.responses == []
    assert (slot.outcome is Outcome.CANCELLED) is is_gone
    assert slot.num_answered == 1


class Freed(ResponseSender):
    """Response sender that frees its request when it sends, and returns late."""

    def __init__(self) -> None:
        super().__init__()
        self.has_begun, self.may_return = threading.Event(), threading.Event()
        self.was_asked_late = False

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        self.has_begun.set()
        assert self.may_return.wait(PATIENCE_S)
        super().send(response, flags)

    def is_cancelled(self) -> bool:
        self.was_asked_late |= self.has_begun.is_set()
        return False


def test_cancellation_is_not_queried_while_the_response_is_being_sent(slot: FlowSlot) -> None:
    """Two threads share a reply whose samples wait for a ring: Triton frees the request of one that is answered."""
    request = Request({}, Freed())
    reply = ChunkReply(Caller(request), slot)
    with ThreadPoolExecutor(2) as pool:
        answering = pool.submit(reply.close)
        assert request.sender.has_begun.wait(PATIENCE_S)
        asking = pool.submit(reply.is_cancelled)
        wait([asking], timeout=0.2)
        request.sender.may_return.set()
        assert not asking.result(60)
        answering.result(60)
    assert not request.sender.was_asked_late
