"""Strings of a tensor equal the stub's, but are read without a copy."""

import struct

import numpy as np
import pytest

from stretto.errors import InvalidRequest
from stretto.triton_io.tensors import AUDIO, MAX_STRINGS, MAX_TEXT_BYTES, TEXT, Strings, read_bytes, read_files
from tests.fakes_triton import Request


def encoded(*strings: bytes) -> np.ndarray:
    return np.frombuffer(b"".join(struct.pack("<I", len(each)) + each for each in strings), np.uint8)


def test_strings_keep_their_shape() -> None:
    strings = (b"one", b"", b"three" * 100, b"\xff")
    assert [bytes(each) for each in Strings(encoded(*strings)).reshape([4])] == list(strings)
    assert [[bytes(each) for each in row] for row in Strings(encoded(*strings)).reshape([2, 2])] == [
        [b"one", b""],
        [b"three" * 100, b"\xff"],
    ]
    assert Strings(encoded()).reshape([0]).shape == (0,)


def test_strings_are_views_of_the_input() -> None:
    came = encoded(b"abc")
    (string,) = Strings(came).reshape([1])
    assert np.shares_memory(np.frombuffer(string, np.uint8), came)


def test_strings_array_reshape_is_lazy() -> None:
    array = Strings(np.zeros(4, np.uint8)).reshape([10**12])  # four bytes of it have no meaning
    assert array.shape == (10**12,)


def test_too_many_files_are_refused() -> None:
    with pytest.raises(InvalidRequest, match=f"audio: expected at most {MAX_STRINGS} files, got 65 files"):
        read_files(Request({"audio": Strings(encoded(*[b""] * 65)).reshape([65])}), AUDIO)


def test_oversized_text_is_refused_before_decoding() -> None:
    text = Request({"text": np.array([bytes(MAX_TEXT_BYTES + 1)], object)})
    with pytest.raises(InvalidRequest, match="text: expected at most 1048576 bytes, got 1048577 bytes"):
        read_bytes(text, TEXT)
