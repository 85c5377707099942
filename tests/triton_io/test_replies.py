"""A chunk is answered once, with the final flag, and its slot learns of it."""

import json
from pathlib import Path

import numpy as np
import pytest

from python_backend.errors import Cancelled
from python_backend.triton_io.flow import FlowSlot, FlowTable
from python_backend.triton_io.replies import ChunkReply, answer_probe
from tests.fakes_triton import Request, TritonError


@pytest.fixture
def slot(tmp_path: Path) -> FlowSlot:
    return FlowTable.create(1, 4, tmp_path).claim()


def test_samples_and_event_ride_with_the_final_flag(slot: FlowSlot) -> None:
    request = Request({})
    ChunkReply(request, slot, "u", 2).send(np.ones(3, np.float32), {"text": "é"})
    (response,) = request.sender.responses
    assert request.sender.is_final
    np.testing.assert_array_equal(response.array("pcm"), np.ones(3, np.float32))
    assert json.loads(response.array("event")[0]) == {"text": "é"}
    assert (slot.num_acknowledged, slot.is_cancelled) == (3, False)


def test_a_text_only_chunk_has_no_samples(slot: FlowSlot) -> None:
    request = Request({})
    ChunkReply(request, slot, "u", 0).send(None, {})
    assert request.sender.responses[0].array("pcm") is None


def test_a_failure_ends_the_utterance(slot: FlowSlot) -> None:
    request = Request({})
    ChunkReply(request, slot, "u", 0).fail(RuntimeError("no codec"))
    assert request.sender.is_final
    assert request.sender.responses[0].error.message() == "failed: utterance u: RuntimeError: no codec"
    assert slot.is_cancelled


def test_the_client_leaving_is_told_to_the_language_model(slot: FlowSlot) -> None:
    request = Request({})
    reply = ChunkReply(request, slot, "u", 0)
    assert not reply.is_cancelled()
    request.sender.client_is_gone = True
    assert reply.is_cancelled()
    assert slot.is_cancelled
    reply.fail(Cancelled("the client cancelled the request"))
    assert request.sender.responses[0].error.code() == TritonError.CANCELLED


def test_a_chunk_after_a_failed_one_is_not_worth_decoding(slot: FlowSlot) -> None:
    ChunkReply(Request({}), slot, "u", 0).fail(RuntimeError("no codec"))
    assert ChunkReply(Request({}), slot, "u", 1).is_cancelled()


def test_answering_twice_is_a_bug(slot: FlowSlot) -> None:
    reply = ChunkReply(Request({}), slot, "u", 0)
    reply.send(None, {})
    with pytest.raises(AssertionError, match="answered twice"):
        reply.fail(RuntimeError())


@pytest.mark.parametrize("is_gone", [False, True])
def test_a_probe_is_answered_to_nobody(slot: FlowSlot, is_gone: bool) -> None:
    request = Request({})
    request.sender.client_is_gone = is_gone
    answer_probe(request, slot)
    assert request.sender.is_final
    assert request.sender.responses == []
    assert slot.is_cancelled is is_gone
    assert slot.num_acknowledged == 0
