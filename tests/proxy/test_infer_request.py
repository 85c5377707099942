"""Requests are valid, or are refused before they reach Triton."""

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc.service_pb2 import ModelInferRequest

from stretto.proxy import infer_request
from stretto.proxy.infer_request import MAX_FIELDS, MAX_STRINGS, SIZES, BadRequest, read_infer_request


def message(shape: list[int], raw: bytes | None, datatype: str = "FP32", **contents: Sequence[float | bytes]) -> bytes:
    request = ModelInferRequest(model_name="speech", id="7")
    tensor = request.inputs.add(name="pcm_in", datatype=datatype, shape=shape)
    if contents:
        tensor.contents.CopyFrom(type(tensor.contents)(**contents))
    if raw is not None:
        request.raw_input_contents.append(raw)
    return request.SerializeToString()


def with_parameters(**parameters: str) -> bytes:
    request = ModelInferRequest(model_name="speech", id="7")
    for name, text in parameters.items():
        request.parameters[name].string_param = text
    return request.SerializeToString()


def named(**names: str) -> bytes:
    request = ModelInferRequest(model_name=names.get("model_name", "speech"), id=names.get("id", "7"))
    request.inputs.add(name=names.get("input", "text"), datatype=names.get("datatype", "BYTES"), shape=[0])
    request.outputs.add(name=names.get("output", "event")).parameters[names.get("of_output", "size")].int64_param = 1
    request.raw_input_contents.append(b"")
    return request.SerializeToString()


@pytest.mark.parametrize(
    ("name", "field"),
    [
        *(("id", "id"), ("model_name", "model_name"), ("input", "inputs"), ("datatype", "inputs")),
        *(("output", "outputs"), ("of_output", "parameters")),
    ],
)
def test_names_with_nul_are_refused(name: str, field: str) -> None:
    read_infer_request(named())
    with pytest.raises(BadRequest, match=rf"^{field}: expected text without NUL, got 'a\\x00b'$"):
        read_infer_request(named(**{name: "a\0b"}))


@pytest.mark.parametrize(
    ("parameters", "came"),
    [
        ({f"p{index}": "" for index in range(33)}, "33 of 155 bytes"),
        ({"a": "x" * 4096}, "1 of 4100 bytes"),
        ({"ä" * 2048: ""}, "1 of 4098 bytes"),
    ],
    ids=["many", "long", "not ASCII"],
)
def test_request_parameters_are_limited_in_number_and_size(parameters: dict[str, str], came: str) -> None:
    read_infer_request(with_parameters(a="x" * 4000, triton_enable_empty_final_response="true"))
    with pytest.raises(
        BadRequest, match=rf"^parameters: expected at most 32 parameters and 4096 bytes in all, got {came}$"
    ):
        read_infer_request(with_parameters(**parameters))
    for forged in ({"stretto_host\0": "203.0.113.9"}, {"stretto_host": "203.0.113.9\0"}):
        with pytest.raises(BadRequest, match=r"^parameters: expected text without NUL"):
            read_infer_request(with_parameters(**forged))


def field(number: int, content: bytes) -> bytes:
    """Encode a field of a protobuf message."""
    size, head = len(content), bytearray([number << 3 | 2])
    while size > 0x7F:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([*head, size]) + content


def classified() -> bytes:
    request = ModelInferRequest(model_name="speech")
    request.outputs.add(name="event").parameters["classification"].int64_param = 3
    return request.SerializeToString()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (message([-1], b""), r"inputs.pcm_in: expected a shape of fewer than 2\^31 elements, got \[-1\]"),
        (message([-(2**63)], b""), r"got \[-9223372036854775808\]"),
        (message([2**62, 4], b""), "fewer than 2"),
        (message([2**32, 2**32], b""), "fewer than 2"),
        (message([0, 2**62], b""), "fewer than 2"),
        (message([10**15], b"\0" * 96), "fewer than 2"),
        (message([1] * 1000, b"\0" * 4), "at most 8 dimensions, got 1000"),
        (message([4], b"\0" * 15), "16 bytes for 4 elements of FP32, got 15"),
        *(
            pytest.param(ModelInferRequest(**{name: "i" * 1025}).SerializeToString(), f"{name}: .*, got 1025", id=name)
            for name in ("id", "model_name", "model_version")
        ),
        (message([4], None), "its bytes in raw_input_contents, got 0 entries"),
        (message([4], b"\0", "FOO"), "a Triton datatype, got 'FOO'"),
        (message([4], b"\0" * 15, "BYTES"), "4 strings, with a length before each, got 15 bytes"),
        (message([5000], b"\0" * 20000, "BYTES"), "at most 4096 strings, got 5000"),
        (classified(), "outputs.event: expected no classification"),
        (message([5000], None, "BYTES", bytes_contents=[b""] * 5000), "at most 4096 strings, got 5000"),
        (message([4], None, fp32_contents=[1.0]), r"4 elements for shape \[4\], got 1"),
        (message([1], b"\0" * 4) + b"\x3a\x04\0\0\0\0", "one entry for each input, got 2"),
        (b"\x0a\xff\xff\xff\xff\x7f", "bytes of field 1, got 0"),
        (b"\x0a" + b"\xff" * 20, "an unterminated varint"),
        (b"\x0b" * 100, "got field 1 of type 3"),
        (b"\x0a\x02\xff\xff", "got bytes that cannot be parsed"),
        (message([1], b"\0" * 4) + b"\x1a\x80\x80\x80\x01" + b"x" * (1 << 21), "besides raw_input_contents"),
    ],
)
def test_inconsistent_tensor_metadata_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(BadRequest, match=says):
        read_infer_request(data)


TINY = 1 << 14  # fields of two bytes or a few
FLAG = ModelInferRequest.InferInputTensor(name="pcm_in", datatype="BOOL", shape=[1]).SerializeToString()


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(field(7, b"") * TINY, id="contents"),
        pytest.param(field(6, b"") * TINY, id="outputs"),
        pytest.param(field(4, b"") * TINY, id="parameters"),
        pytest.param((field(5, FLAG) + field(7, b"\1")) * TINY, id="inputs"),
        pytest.param(field(5, field(4, b"") * TINY), id="parameters of an input"),
        pytest.param(field(6, field(2, b"") * TINY), id="parameters of an output"),
        pytest.param(field(5, field(5, b"") * TINY), id="contents of an input"),
        pytest.param(field(5, b"\x18\1" * TINY), id="a shape, unpacked"),
        pytest.param(field(5, field(4, b"") * (MAX_FIELDS // 8)) * TINY, id="parameters of many inputs"),
    ],
)
def test_only_the_permitted_number_of_fields_is_read(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    read = []
    whole = infer_request._varint
    monkeypatch.setattr(infer_request, "_varint", lambda data, at: read.append(at) or whole(data, at))
    with pytest.raises(BadRequest, match=f"^request: expected at most {MAX_FIELDS} fields, .*, got more$"):
        read_infer_request(data)
    assert len(read) <= 2 * MAX_FIELDS


@pytest.mark.parametrize("name", ["shared_memory_byte_size", "shared_memory_offset"])
def test_negative_shared_memory_offsets_and_sizes_are_refused(name: str) -> None:
    request = ModelInferRequest(model_name="speech", id="7")
    tensor = request.inputs.add(name="pcm_in", datatype="FP32", shape=[2])
    tensor.parameters["shared_memory_region"].string_param = "mine"
    tensor.parameters["shared_memory_byte_size"].int64_param = 8
    tensor.parameters[name].int64_param = -8
    with pytest.raises(BadRequest, match=r"^inputs.pcm_in: expected an offset and a size in shared memory >= 0, got"):
        read_infer_request(request.SerializeToString())


def test_infer_request_field_count_is_limited() -> None:
    assert len(read_infer_request(field(6, b"") * MAX_FIELDS).head.outputs) == MAX_FIELDS
    with pytest.raises(BadRequest, match=f"at most {MAX_FIELDS} fields"):
        read_infer_request(field(6, b"") * (MAX_FIELDS + 1))


def test_request_with_all_permitted_fields_is_read() -> None:
    request = ModelInferRequest(model_name="speech", model_version="1", id="7")
    for number in range(16):
        tensor = request.inputs.add(name=f"input_{number}", datatype="BYTES", shape=[1])
        tensor.parameters["shared_memory_region"].string_param = "stretto_in_1"
        tensor.parameters["shared_memory_byte_size"].int64_param = 8
        tensor.parameters["shared_memory_offset"].int64_param = 8 * number
        request.outputs.add(name=f"output_{number}").parameters["shared_memory_region"].string_param = "mine"
        request.parameters[f"parameter_{number}"].int64_param = number
    assert read_infer_request(request.SerializeToString()).head == request
    texts = message([MAX_STRINGS], None, "BYTES", bytes_contents=[b"hi"] * MAX_STRINGS)
    assert len(read_infer_request(texts).head.inputs[0].contents.bytes_contents) == MAX_STRINGS
    read_infer_request(message([MAX_STRINGS], bytes(4 * MAX_STRINGS), "BYTES"))
    unpacked = field(5, b"\x18\2\x18\3" + field(2, b"BOOL"))  # as an encoder may write numbers, too
    assert list(read_infer_request(unpacked + field(7, bytes(6))).head.inputs[0].shape) == [2, 3]


def test_a_refused_request_keeps_its_id() -> None:
    with pytest.raises(BadRequest) as refused:
        read_infer_request(message([-1], b""))
    assert refused.value.request_id == "7"


def test_valid_infer_request_is_read_with_raw_sizes() -> None:
    request = read_infer_request(message([2, 3], b"\0" * 24))
    assert (request.head.model_name, request.raw_sizes) == ("speech", (24,))
    assert not request.head.raw_input_contents
    assert read_infer_request(message([1], None, "FP32", fp32_contents=[1.0])).raw_sizes == ()


@given(st.binary(max_size=200), st.integers(0, 200), st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4))
def test_any_infer_request_is_refused_or_has_its_declared_size(noise: bytes, at: int, shape: list[int]) -> None:
    inside, many = field(5, noise) + field(6, noise[:at]), noise[-3:] * at
    for data in (noise, message(shape, noise), message([4], b"\0" * 16)[:at] + noise, inside, many, field(5, many)):
        try:
            request = read_infer_request(data)
        except BadRequest:
            continue
        assert len(request.head.inputs) + len(request.head.outputs) + len(request.raw_sizes) <= MAX_FIELDS
        raw = [t for t in request.head.inputs if not t.HasField("contents") and not t.parameters]
        for tensor, size in zip(raw, request.raw_sizes, strict=True):
            assert min(tensor.shape, default=0) >= 0
            if tensor.datatype in SIZES:
                assert size == SIZES[tensor.datatype] * math.prod(tensor.shape)
