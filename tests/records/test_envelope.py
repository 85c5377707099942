"""What travels with a chunk survives as JSON."""

import json

import pytest
from stretto.records.chunk import Chunk, WordMark
from stretto.records.envelope import Envelope, FlowAddress
from stretto.streams.segment import Segment

CHUNK = Chunk(3, Segment.AUDIO, "two", (WordMark("two", 12), WordMark(None, 15)))


@pytest.mark.parametrize("chunk", [CHUNK, None])
def test_an_envelope_comes_back_as_it_went(chunk: Chunk | None) -> None:
    envelope = Envelope("u1", FlowAddress("stretto_flow_1_ab", 4, 9), chunk)
    record = json.loads(json.dumps(envelope.to_record()))
    assert record["probe"] is (chunk is None)
    assert Envelope.from_record(record) == envelope
