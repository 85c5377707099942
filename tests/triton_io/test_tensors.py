"""Reading and writing of tensors; errors contain the field, the expected value and the received value."""

import numpy as np
import pytest

from stretto.errors import InvalidRequest
from stretto.triton_io import tensors
from stretto.triton_io.tensors import (
    array_tensor,
    bytes_tensor,
    event_tensor,
    read_array,
    read_bytes,
    read_files,
    read_record,
    read_scalar,
)
from tests.fakes_triton import Request


def test_numeric_tensors_round_trip() -> None:
    codes = np.arange(6, dtype=np.int32).reshape(2, 3)
    tensor = array_tensor(tensors.CODES, codes)
    assert tensor.name() == "codes"
    np.testing.assert_array_equal(read_array(Request({"codes": tensor.as_numpy()}), tensors.CODES), codes)


@pytest.mark.parametrize("array", [np.arange(8, dtype=np.float32)[::2], np.zeros(0, np.float32)])
def test_strided_and_empty_arrays_are_written_unchanged(array: np.ndarray) -> None:
    np.testing.assert_array_equal(array_tensor(tensors.PCM, array).as_numpy(), array)


def test_record_tensor_round_trips() -> None:
    record = bytes(range(256))
    tensor = bytes_tensor(tensors.CHUNK, record)
    assert tensor.as_numpy().dtype == np.uint8
    assert read_record(Request({"chunk": tensor.as_numpy()}), tensors.CHUNK) == record


def test_an_absent_optional_tensor_is_none() -> None:
    request = Request({})
    assert read_array(request, tensors.PCM_IN) is None
    assert read_scalar(request, tensors.SAMPLE_RATE) is None
    assert read_bytes(request, tensors.TEXT) is None


def test_missing_input_tensor_is_reported() -> None:
    with pytest.raises(InvalidRequest, match=r"prompt: expected UINT8 \[-1\], got none"):
        read_record(Request({}), tensors.PROMPT)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((1, 4), np.float32), r"pcm_in: expected FP32 \[-1\], got float32 \[1, 4\]"),
        (np.zeros(4, np.float64), r"pcm_in: expected FP32 \[-1\], got float64 \[4\]"),
    ],
)
def test_wrong_tensor_shape_or_type_is_named(array: np.ndarray, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        read_array(Request({"pcm_in": array}), tensors.PCM_IN)


@pytest.mark.parametrize("array", [np.array([b"a", b"b"], object), np.array([1], np.int32), np.array([], object)])
def test_text_tensor_must_have_one_element(array: np.ndarray) -> None:
    with pytest.raises(InvalidRequest, match=r"text: expected STRING \[1\]"):
        read_bytes(Request({"text": array}), tensors.TEXT)


def test_all_audio_file_elements_are_read_in_order() -> None:
    request = Request({"audio": np.array([b"a", b"\0b", b""], object)})
    assert read_files(request, tensors.AUDIO) == (b"a", b"\0b", b"")
    assert read_files(Request({}), tensors.AUDIO) is None
    with pytest.raises(InvalidRequest, match=r"audio: expected STRING \[-1\], got object \[1, 1\]"):
        read_files(Request({"audio": np.array([[b"a"]], object)}), tensors.AUDIO)


def test_event_tensor_is_utf8() -> None:
    assert event_tensor("né".encode()).as_numpy()[0] == "né".encode()


def test_array_of_wrong_dtype_is_never_sent() -> None:
    with pytest.raises(AssertionError, match="pcm: float64"):
        array_tensor(tensors.PCM, np.zeros(3))
