"""Records survive serialisation; any other input is a valid record or gives one clear error."""

import json
import math
from dataclasses import asdict
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from stretto.errors import InvalidRequest
from stretto.family.prompting import read_messages
from stretto.records.chunk import EVENT, Chunk, Envelope, GuidanceChange, Report, WordMark
from stretto.records.flow_address import MAX_GENERATION, FlowAddress
from stretto.records.prompt import Condition, InputAudio, Prompt, TextPart
from stretto.records.sampling import OPTIONS, Delivery, OutputForm, RingAddress, SamplingConfig, SegmentSampling
from stretto.streams.chunking import ChunkPolicy
from stretto.streams.layout import Segment
from stretto_contract.finish_reasons import LIMITS, STOP

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
RINGS = st.builds(
    RingAddress, name=st.from_regex(r"\Astretto_ring_[0-9a-f]{16}\Z"), memory=st.sampled_from(["system", "cuda"])
)
FORMS = st.builds(
    OutputForm,
    encoding=st.sampled_from(["pcm_f32le", "pcm_s16le"]),
    sample_rate=st.none() | st.integers(4_000, 192_000),
    ring=st.none() | RINGS,
)
CHANGES = st.lists(st.builds(GuidanceChange, COUNTS, st.booleans()), max_size=3).map(tuple)
REPORTS = st.builds(
    Report,
    *[st.sampled_from([STOP, *LIMITS]), COUNTS, COUNTS, COUNTS, COUNTS, FLOATS, st.integers(0, MAX_GENERATION)],
    *[FLOATS, st.none() | FLOATS, FLOATS, st.sampled_from(["always", "adaptive"]), CHANGES],
)
CHUNKS = st.builds(
    Chunk,
    index=COUNTS,
    segment=st.sampled_from(Segment),
    text=TEXTS,
    marks=st.lists(
        st.builds(WordMark, st.none() | TEXTS, COUNTS, place=st.none() | st.tuples(COUNTS, COUNTS)), max_size=3
    ).map(tuple),
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
CONDITION = Condition((3, 1), np.array([[0.1, -2.5, 1e-30], [4, 5, 6]], np.float32))
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
    has_empty_reply=st.booleans(),
    adapter=st.none() | st.text(max_size=3),
    condition=st.sampled_from([None, CONDITION, Condition((), np.zeros((0, 3), np.float32))]),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(ENVELOPES)
def test_envelope_round_trips_through_bytes(envelope: Envelope) -> None:
    assert Envelope.from_bytes("chunk", envelope.to_bytes()) == envelope


@given(PROMPTS)
def test_prompt_round_trips_through_bytes(prompt: Prompt) -> None:
    read = Prompt.from_bytes("prompt", prompt.to_bytes(), prompt.rows, prompt.features)
    for name in ("task", "sampling", "words", "delivery", "track", "num_reference_rows", "has_empty_reply", "adapter"):
        assert getattr(read, name) == getattr(prompt, name)
    np.testing.assert_equal([asdict(each) for each in read.audios], [asdict(each) for each in prompt.audios])
    np.testing.assert_equal(read.delayed_tail, prompt.delayed_tail)
    assert (read.condition is None) == (prompt.condition is None)
    if read.condition is not None and prompt.condition is not None:
        assert read.condition.ids == prompt.condition.ids
        np.testing.assert_array_equal(read.condition.vectors, prompt.condition.vectors, strict=True)


def test_speaker_vectors_are_personal_data() -> None:
    assert "vectors" not in repr(CONDITION)


def test_conditions_with_the_same_numbers_have_one_digest() -> None:
    changed = CONDITION.vectors.copy()
    changed[1, 2] = np.nextafter(changed[1, 2], np.float32(9))
    others = [
        Condition((3,), CONDITION.vectors),
        Condition((3, 1), CONDITION.vectors[:1]),
        Condition((3, 1), CONDITION.vectors.reshape(3, 2)),
        Condition((3, 1), changed),
    ]
    assert Condition((3, 1), CONDITION.vectors.copy()).digest == CONDITION.digest
    assert len({CONDITION.digest, *(each.digest for each in others)}) == 5


def read_envelope(data: bytes) -> object:
    return Envelope.from_bytes("chunk", data)


def read_prompt(data: bytes) -> object:
    return Prompt.from_bytes("prompt", data, ROWS)


def read_part(data: bytes) -> object:
    return TextPart.from_bytes("prompt", data)


def read_options(text: bytes) -> object:
    return OPTIONS.read("options", text)


def read_turns(text: bytes) -> object:
    return read_messages(text.decode(errors="replace"))


def read_event(text: bytes) -> object:
    return EVENT.read("event", text)


PACKED = [read_envelope, read_prompt, read_part]
READERS = pytest.mark.parametrize("read", [*PACKED, read_options, read_turns, read_event])


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
def test_arbitrary_bytes_are_read_or_refused(read: Any, text: bytes) -> None:
    is_read_or_refused(read, text)


@READERS
@given(value=JSON)
def test_arbitrary_json_records_are_read_or_refused(read: Any, value: Any) -> None:
    is_read_or_refused(read, msgspec.msgpack.encode(value) if read in PACKED else json.dumps(value).encode())


def places(value: Any) -> list[tuple[Any, Any]]:
    """Return every container in a JSON value with each of its keys."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [(value, key) for key in keys] + [place for key in keys for place in places(value[key])]


@given(packed=st.one_of(ENVELOPES.map(Envelope.to_bytes), PROMPTS.map(Prompt.to_bytes)), value=JSON, data=st.data())
def test_mutated_record_is_valid_or_refused_with_its_field(packed: bytes, value: Any, data: st.DataObject) -> None:
    record = msgspec.msgpack.decode(packed)
    read = read_envelope if "flow" in record else read_prompt
    holder, key = data.draw(st.sampled_from(places(record)))
    assume(holder[key] != value)
    holder[key] = value
    is_read_or_refused(read, msgspec.msgpack.encode(record))


RING_NAME = f"stretto_ring_{'a' * 16}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slot": 1.0}, "chunk.flow.slot: expected int, got 1.0"),
        ({"slot": "1"}, "chunk.flow.slot: expected int, got '1'"),
        ({"slot": True}, "chunk.flow.slot: expected int, got True"),
        ({"slot": 0}, "chunk.flow.slot: expected int >= 1, got 0"),
        ({"generation": 1 << 63}, "chunk.flow.generation: expected int <= 9223372036854775807, got 9"),
        ({"table": "../passwd"}, "chunk.flow.table: expected str matching regex "),
        ({"table": f"stretto_flow_1_{'a' * 32}\n"}, "chunk.flow.table: expected str matching regex "),
        ({"owner": 1}, "chunk.flow.owner: expected one of generation, slot, table, got an unknown key"),
        ({5: 1}, "chunk.flow: expected str, got {"),
    ],
)
def test_error_names_invalid_record_fields(changes: dict[Any, Any], message: str) -> None:
    flow = {"table": f"stretto_flow_1_{'a' * 32}", "slot": 1, "generation": 2} | changes
    assert str(refusal(read_envelope, packed_envelope(flow=flow))).startswith(message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "/etc/passwd"}, "chunk.form.ring.name: expected str matching regex "),
        ({"name": f"{RING_NAME}\n"}, "chunk.form.ring.name: expected str matching regex "),
        ({"memory": "disk"}, "chunk.form.ring.memory: "),
        ({"slots": [{"slot": 1}]}, "chunk.form.ring.slots: expected one of memory, name, got an unknown"),
    ],
)
def test_option_limits_are_checked_between_processes(changes: dict[str, Any], message: str) -> None:
    assert refusal(read_envelope, packed_envelope(form={"ring": {"name": RING_NAME}})) is None
    changed = packed_envelope(form={"ring": {"name": RING_NAME} | changes})
    assert str(refusal(read_envelope, changed)).startswith(message)


def packed_envelope(**changes: Any) -> bytes:
    flow = {"table": f"stretto_flow_1_{'a' * 32}", "slot": 1, "generation": 2}
    return msgspec.msgpack.encode({"utterance": "u", "flow": flow, "chunk": None} | changes)


def test_unknown_keys_in_list_records_are_refused() -> None:
    marks = [{"word": "a", "frame": 1}, {"word": None, "frame": 2, "row": 3}]
    said = refusal(read_envelope, packed_envelope(chunk={"index": 0, "segment": 2, "marks": marks}))
    assert said == "chunk.chunk.marks[1].row: expected one of end, frame, place, word, got an unknown key"


def test_integer_is_accepted_for_a_float_field() -> None:
    """The writer does not check types, and some families use integers as defaults."""
    sampling = SamplingConfig(SegmentSampling(0), SegmentSampling(1), guidance_scale=2)
    read = Prompt.from_bytes("prompt", Prompt("tts", ROWS, sampling).to_bytes(), ROWS)
    assert read.sampling == sampling
    assert isinstance(read.sampling.guidance_scale, float)


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_input_audio_duration_must_be_finite_and_nonnegative(value: float) -> None:
    sampling = SamplingConfig(SegmentSampling(0.0), SegmentSampling(0.0))
    prompt = Prompt("tts", ROWS, sampling, input_audio_s=value)
    assert str(refusal(read_prompt, prompt.to_bytes())).startswith("prompt.input_audio_s: expected float ")


def test_ranges_in_a_record_of_the_server_are_not_checked_again() -> None:
    """Only the preprocessor can authenticate a prompt, and it has checked the options. `SpeechLLM` checks them, too."""
    sampling = SamplingConfig(SegmentSampling(0.0), SegmentSampling(0.0))
    record = msgspec.msgpack.decode(Prompt("tts", ROWS, sampling).to_bytes())
    record["sampling"]["seed"] = -1
    prompt = read_prompt(msgspec.msgpack.encode(record))
    assert isinstance(prompt, Prompt)
    with pytest.raises(InvalidRequest, match=r"options.seed: expected an integer in \[0, \d+\], got -1"):
        prompt.sampling.check()


@pytest.mark.parametrize("end", [b"", b"\xc1", b"\xff" * 9, b"\x91" * 100_000])
def test_truncated_and_extended_records_are_refused(end: bytes) -> None:
    data = packed_envelope()
    for length in range(0, len(data), 7):
        said = str(refusal(read_envelope, data[:length] + end))
        assert said.startswith("chunk"), length
    assert str(refusal(read_envelope, data + b"\x00")).startswith("chunk: expected a valid value, got an error: ")


def test_prompt_with_inconsistent_arrays_is_refused() -> None:
    sampling = SamplingConfig(SegmentSampling(0.0), SegmentSampling(0.0))
    prompt = Prompt("tts", ROWS, sampling, audios=(InputAudio(1, 2, np.ones((5, 3), np.float32)),))
    for features in (None, np.ones((4, 3), np.float32)):
        with pytest.raises(
            InvalidRequest, match=r"^prompt\.audios: expected spans of . frames in all, as in the features"
        ):
            Prompt.from_bytes("prompt", prompt.to_bytes(), ROWS, features)
    record = msgspec.msgpack.decode(Prompt("tts", ROWS, sampling, condition=CONDITION).to_bytes())
    record["condition"]["vectors"] = bytes(20)
    assert str(refusal(read_prompt, msgspec.msgpack.encode(record))) == (
        "prompt.condition.vectors: expected a multiple of 12 bytes, got 20 bytes"
    )
    tail = Prompt("tts", ROWS, sampling, delayed_tail=np.ones((2, 3), np.int32))
    with pytest.raises(InvalidRequest, match=r"^prompt\.delayed_tail: expected rows of 2 ids, got rows of \[3\] ids$"):
        Prompt.from_bytes("prompt", tail.to_bytes(), ROWS)
