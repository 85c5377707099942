"""Records survive serialization; any other input is a valid record or one clear refusal."""

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from stretto.errors import InvalidRequest
from stretto.families.conversation import read_messages
from stretto.records.chunk import MAX_GENERATION, Chunk, Envelope, FlowAddress, GuidanceChange, Report, WordMark
from stretto.records.event import EVENT
from stretto.records.prompt import InputAudio, Prompt
from stretto.records.sampling import OPTIONS, Delivery, OutputForm, RingAddress, SamplingConfig, SegmentSampling
from stretto.streams.chunking import ChunkPolicy
from stretto.streams.layout import Segment

pytestmark = pytest.mark.slow

FLOATS = st.floats(0, 1e6)
COUNTS = st.integers(0, 1 << 31)
TEXTS = st.text(max_size=20)
FLOWS = st.builds(
    FlowAddress,
    table=st.from_regex(r"\Astretto_flow_[0-9]{1,10}_[0-9a-f]{32}\Z"),
    slot=st.integers(1, 4096),
    generation=st.integers(1, MAX_GENERATION),
)
RINGS = st.builds(RingAddress, name=st.from_regex(r"\Astretto_ring_[0-9a-f]{16}\Z"), device=st.integers(0, 7))
FORMS = st.builds(
    OutputForm,
    encoding=st.sampled_from(["pcm_f32le", "pcm_s16le"]),
    sample_rate=st.none() | st.integers(4_000, 192_000),
    ring=st.none() | RINGS,
)
CHANGES = st.lists(st.builds(GuidanceChange, COUNTS, st.booleans()), max_size=3).map(tuple)
REPORTS = st.builds(
    Report,
    *[TEXTS, COUNTS, COUNTS, COUNTS, COUNTS, FLOATS, st.integers(0, MAX_GENERATION)],
    *[FLOATS, st.none() | FLOATS, FLOATS, st.sampled_from(["always", "adaptive"]), CHANGES],
)
CHUNKS = st.builds(
    Chunk,
    index=COUNTS,
    segment=st.sampled_from(Segment),
    text=TEXTS,
    marks=st.lists(st.builds(WordMark, st.none() | TEXTS, COUNTS), max_size=3).map(tuple),
    is_final=st.booleans(),
    report=st.none() | REPORTS,
    guidance_changes=CHANGES,
    output_codes=st.sampled_from([(), ((1, 2), (3, 4))]),
)
ENVELOPES = st.builds(Envelope, st.text(min_size=1, max_size=64), FLOWS, st.none() | CHUNKS, FORMS)
SEGMENTS = st.builds(SegmentSampling, st.floats(0.5, 10), COUNTS.map(lambda k: k % 1000), st.floats(0.01, 1))
SAMPLINGS = st.builds(
    SamplingConfig, SEGMENTS, SEGMENTS, st.floats(0, 100), st.floats(0.5, 10), st.integers(0, MAX_GENERATION)
)
DELIVERIES = st.builds(Delivery, FORMS, st.just(ChunkPolicy(2, 50, 0.3, 12.5, 10)), st.booleans())
ROWS = np.arange(12, dtype=np.int32).reshape(4, 3)
PROMPTS = st.builds(
    Prompt,
    task=TEXTS,
    rows=st.just(ROWS),
    sampling=SAMPLINGS,
    words=st.lists(TEXTS, max_size=3).map(tuple),
    delivery=DELIVERIES,
    audios=st.sampled_from([(), (InputAudio(1, 2, np.ones((5, 3), np.float32)),)]),
    delayed_tail=st.sampled_from([None, np.ones((2, 2), np.int32), np.zeros((0, 2), np.int32)]),
    track=st.lists(st.integers(0, 99), max_size=3).map(tuple),
    num_reference_rows=st.integers(0, 4),
    adapter=st.none() | st.text(max_size=3),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(ENVELOPES)
def test_an_envelope_comes_back_as_it_went(envelope: Envelope) -> None:
    assert Envelope.from_json("chunk", envelope.to_json()) == envelope


@given(PROMPTS)
def test_a_prompt_comes_back_as_it_went(prompt: Prompt) -> None:
    read = Prompt.from_json("prompt", prompt.to_json(), prompt.rows, prompt.features)
    for name in ("task", "sampling", "words", "delivery", "track", "num_reference_rows", "adapter"):
        assert getattr(read, name) == getattr(prompt, name)
    np.testing.assert_equal([asdict(each) for each in read.audios], [asdict(each) for each in prompt.audios])
    np.testing.assert_equal(read.delayed_tail, prompt.delayed_tail)


def read_envelope(text: bytes) -> object:
    return Envelope.from_json("chunk", text)


def read_prompt(text: bytes) -> object:
    return Prompt.from_json("prompt", text, ROWS)


def read_options(text: bytes) -> object:
    return OPTIONS.read("options", text)


def read_turns(text: bytes) -> object:
    return read_messages(text.decode(errors="replace"))


def read_event(text: bytes) -> object:
    return EVENT.read("event", text)


READERS = pytest.mark.parametrize("read", [read_envelope, read_prompt, read_options, read_turns, read_event])


def refusal(read: Any, text: bytes) -> str | None:
    """Return the error message for `text`, or None if it is accepted."""
    try:
        read(text)
    except InvalidRequest as error:
        return str(error)
    return None


def is_read_or_refused(read: Any, text: bytes) -> None:
    said = refusal(read, text)
    if said is not None:
        assert said.startswith(("chunk", "prompt", "options", "messages", "event"))
        assert "\n" not in said
        assert len(said) < 400


@READERS
@given(text=st.binary(max_size=200))
def test_any_bytes_are_a_record_or_a_refusal(read: Any, text: bytes) -> None:
    is_read_or_refused(read, text)


@READERS
@given(value=JSON)
def test_any_json_is_a_record_or_a_refusal(read: Any, value: Any) -> None:
    is_read_or_refused(read, json.dumps(value).encode())


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container in a JSON value with each of its keys."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [(value, key) for key in keys] + [place for key in keys for place in places(value[key])]


@given(text=st.one_of(ENVELOPES.map(Envelope.to_json), PROMPTS.map(Prompt.to_json)), value=JSON, data=st.data())
def test_a_changed_record_is_valid_or_refused_by_field(text: bytes, value: Any, data: st.DataObject) -> None:
    record = json.loads(text)
    read = read_envelope if "flow" in record else read_prompt
    holder, key = data.draw(st.sampled_from(places(record)))
    assume(holder[key] != value)
    holder[key] = value
    is_read_or_refused(read, json.dumps(record).encode())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slot": 1.0}, "chunk.flow.slot: expected a valid integer, got 1.0"),
        ({"slot": "1"}, "chunk.flow.slot: expected a valid integer, got '1'"),
        ({"slot": 0}, "chunk.flow.slot: expected greater than or equal to 1, got 0"),
        ({"generation": 1 << 63}, "chunk.flow.generation: expected less than or equal to 9223372036854775807, got 9"),
        ({"table": "../passwd"}, "chunk.flow.table: expected "),
        ({"owner": 1}, "chunk.flow.owner: expected one of generation, slot, table, got an unknown key"),
    ],
)
def test_what_is_wrong_with_a_record_is_named(changes: dict[str, Any], message: str) -> None:
    flow = {"table": f"stretto_flow_1_{'a' * 32}", "slot": 1, "generation": 2} | changes
    with pytest.raises(InvalidRequest) as caught:
        Envelope.from_json("chunk", json.dumps({"utterance": "u", "flow": flow, "chunk": None}).encode())
    assert str(caught.value).startswith(message)


def test_a_prompt_whose_arrays_do_not_fit_is_refused() -> None:
    sampling = SamplingConfig(SegmentSampling(0.0), SegmentSampling(0.0))
    prompt = Prompt("tts", ROWS, sampling, audios=(InputAudio(1, 2, np.ones((5, 3), np.float32)),))
    for features in (None, np.ones((4, 3), np.float32)):
        with pytest.raises(InvalidRequest, match=r"^prompt\.audios: expected spans of all . frames of the features"):
            Prompt.from_json("prompt", prompt.to_json(), ROWS, features)
    tail = Prompt("tts", ROWS, sampling, delayed_tail=np.ones((2, 3), np.int32))
    with pytest.raises(InvalidRequest, match=r"^prompt\.delayed_tail: expected rows of 2 ids, got others$"):
        Prompt.from_json("prompt", tail.to_json(), ROWS)
